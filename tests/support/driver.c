/* Executes its arguments on a database: driver DATABASE SQL...  A statement with parameters is executed twice,
   with numbers, texts and blobs bound, so that bind, reset and step all have callers. */
#include <stdio.h>
#include <string.h>

#include "sqlite3.h"

static int execute(sqlite3 *db, const char *sql) {
  sqlite3_stmt *stmt = 0;
  while (sql && *sql) {
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, &sql);
    if (rc != SQLITE_OK) {
      fprintf(stderr, "%s\n", sqlite3_errmsg(db));
      return rc;
    }
    if (!stmt) continue;
    int parameters = sqlite3_bind_parameter_count(stmt);
    for (int round = 0; round < (parameters ? 2 : 1); round++) {
      for (int i = 1; i <= parameters; i++) {
        if (i % 3 == 1) sqlite3_bind_int64(stmt, i, 40 + round);
        if (i % 3 == 2) sqlite3_bind_text(stmt, i, "hello", 5, SQLITE_STATIC);
        if (i % 3 == 0) sqlite3_bind_zeroblob(stmt, i, 100);
      }
      while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);
        printf("%s\n", text ? text : "NULL");
      }
      if (rc != SQLITE_DONE) fprintf(stderr, "%s\n", sqlite3_errmsg(db));
      sqlite3_reset(stmt);
      sqlite3_clear_bindings(stmt);
    }
    sqlite3_finalize(stmt);
  }
  return SQLITE_OK;
}

int driver_main(int argc, char **argv) {
  sqlite3 *db = 0;
  int failed = 0;
  if (argc < 2 || sqlite3_open(argv[1], &db) != SQLITE_OK) return 2;
  for (int i = 2; i < argc; i++) failed |= execute(db, argv[i]) != SQLITE_OK;
  sqlite3_close(db);
  return failed;
}

int main(int argc, char **argv) { return driver_main(argc, argv); }
