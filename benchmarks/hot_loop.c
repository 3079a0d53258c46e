/*
 * The program that `make bench` observes: three kinds of statements on an in-memory database.
 *
 * hot_loop MODE [PARTS] prints, for each kind, the thread CPU time of one execution in nanoseconds and then the elapsed
 * time: the smallest of several chunks.  MODE profile installs a sqlite3_trace_v2 callback that stores what a statement
 * event holds, MODE wait only waits for the end of its input.  PARTS makes the chunks so many times smaller.
 */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct { sqlite3_stmt *stmt; sqlite3_int64 ns; const char *sql; int counters[3]; } last;

static int profile(unsigned what, void *context, void *stmt, void *ns)
{
  (void)what;
  (void)context;
  last.stmt = stmt;
  last.ns = *(sqlite3_int64 *)ns;
  last.sql = sqlite3_sql(stmt);
  last.counters[0] = sqlite3_stmt_status(stmt, SQLITE_STMTSTATUS_FULLSCAN_STEP, 0);
  last.counters[1] = sqlite3_stmt_status(stmt, SQLITE_STMTSTATUS_SORT, 0);
  last.counters[2] = sqlite3_stmt_status(stmt, SQLITE_STMTSTATUS_VM_STEP, 0);
  return 0;
}

static double elapsed[3];
static int parts = 1, kind;

static double now(clockid_t clock)
{
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

static double measure(sqlite3 *db, const char *sql, int n)
{
  sqlite3_stmt *stmt;
  double best = 1e18, *shortest = &elapsed[kind++];
  n = n / parts ? n / parts : 1;
  *shortest = 1e18;
  sqlite3_prepare_v2(db, sql, -1, &stmt, 0);
  for (int chunk = 0; chunk < 20; chunk++) {
    double begin = now(CLOCK_MONOTONIC), start = now(CLOCK_THREAD_CPUTIME_ID), each;
    for (int i = 0; i < n; i++) {
      sqlite3_bind_int(stmt, 1, i % 1000);
      if (sqlite3_bind_parameter_count(stmt) > 1)
        sqlite3_bind_text(stmt, 2, "hello", 5, SQLITE_STATIC);
      while (sqlite3_step(stmt) == SQLITE_ROW)
        ;
      sqlite3_reset(stmt);
    }
    each = (now(CLOCK_THREAD_CPUTIME_ID) - start) / n;
    if (each < best)
      best = each;
    each = (now(CLOCK_MONOTONIC) - begin) / n;
    if (each < *shortest)
      *shortest = each;
  }
  sqlite3_finalize(stmt);
  return best;
}

int main(int argc, char **argv)
{
  sqlite3 *db;
  if (argc > 1 && !strcmp(argv[1], "wait")) {
    puts(sqlite3_libversion());
    fflush(stdout);
    return getchar() != EOF;
  }
  if (argc > 2)
    parts = atoi(argv[2]);
  sqlite3_open(":memory:", &db);
  sqlite3_exec(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)", 0, 0, 0);
  if (argc > 1 && !strcmp(argv[1], "profile"))
    sqlite3_trace_v2(db, SQLITE_TRACE_PROFILE, profile, 0);
  printf("%.1f", measure(db, "INSERT OR REPLACE INTO t VALUES(?, ?)", 5000));
  printf(" %.1f", measure(db, "SELECT ?", 5000));
  printf(" %.1f", measure(db, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100) "
                                "SELECT x FROM c WHERE x > -?", 200));
  printf(" %.1f %.1f %.1f\n", elapsed[0], elapsed[1], elapsed[2]);
  sqlite3_close(db);
  return 0;
}
