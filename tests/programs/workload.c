/*
 * A program that uses SQLite in every way that a tracer must survive, and says what it did.
 *
 *   workload DBDIR ORACLE.jsonl [--seed N] [--threads N] [--no-trace] [--leave-running]
 *            [--count N] [--exit=normal|_exit|abort|kill|segv]
 *       The cases (or, with --count, N executions of one INSERT) in databases under DBDIR.
 *       One line of JSON per execution goes to ORACLE.jsonl, written at the end.
 *   workload DBDIR - --loop [--interval MS]
 *       Prints "ready", then executes one statement every few milliseconds until standard input ends.
 *   workload DBDIR - --rate SECONDS [--threads N]
 *       Executes flat out; prints {"executions": N, "threads": T, "seconds": S}.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cases.h"

enum mode { MODE_CASES, MODE_COUNT, MODE_LOOP, MODE_RATE };

struct options {
    enum mode mode;
    long count;
    int interval;
    double seconds;
    int trace;
    int leave_running;
    const char *exit;
};

struct connection *open_file(const struct workload *w, const char *name, int flags) {
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", w->directory, name);
    struct connection *conn = o_open(path, flags);
    o_run(conn, "PRAGMA synchronous = OFF");
    return conn;
}

static void look_at_sqlite(struct workload *w) {
    struct connection *conn = o_open(":memory:", 0);
    static const struct {
        enum feature feature;
        const char *sql;
    } probes[] = {
        {HAS_FTS5, "CREATE VIRTUAL TABLE temp.p5 USING fts5(x)"}, {HAS_FTS4, "CREATE VIRTUAL TABLE temp.p4 USING fts4(x)"},
        {HAS_RTREE, "CREATE VIRTUAL TABLE temp.pr USING rtree(i, a, b)"}, {HAS_JSON, "SELECT * FROM json_each('[]')"},
        {HAS_DBSTAT, "SELECT 1 FROM dbstat LIMIT 0"},
    };
    oracle_case("what this SQLite has");
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        /* Prepare alone tells of a function or an eponymous table, but a module is looked up by step. */
        sqlite3_stmt *stmt = NULL;
        if (sqlite3_prepare_v2(conn->db, probes[i].sql, -1, &stmt, NULL) != SQLITE_OK) continue;
        sqlite3_finalize(stmt);
        if (probes[i].feature == HAS_JSON || probes[i].feature == HAS_DBSTAT) {
            w->sqlite_has[probes[i].feature] = 1;
            continue;
        }
        struct statement *s = o_prepare(conn, probes[i].sql);
        w->sqlite_has[probes[i].feature] = o_step(s) == SQLITE_DONE;
        o_finalize(s);
    }
    o_close(conn);
}

static void run_cases(struct workload *w) {
    look_at_sqlite(w);
    binds(w);
    texts(w);
    results(w);
    errors(w);
    busy(w);
    nesting(w);
    schemas(w);
    plans(w);
    extensions(w);
    threading(w);
}

static void run_count(const struct workload *w, long count) {
    struct connection *conn = open_file(w, "count.db", 0);
    oracle_case("count");
    o_run(conn, "CREATE TABLE IF NOT EXISTS t(v)");
    struct statement *s = o_prepare(conn, "INSERT INTO t VALUES(?)");
    for (long i = 0; i < count; i++) {
        o_bind_int64(s, 1, i);
        o_drain(s, 0);
        o_reset(s);
    }
    o_finalize(s);
    o_close(conn);
}

static void leave_running(const struct workload *w) {
    struct connection *conn = open_file(w, "left.db", 0);
    oracle_case("left running");
    o_run(conn, "CREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES(1), (2), (3)");
    struct statement *s = o_prepare(conn, "SELECT v, 'left running' FROM t");
    o_steps(s, 2);
    o_abandon(s);
}

static int die(const char *how) {
    if (strcmp(how, "normal") == 0) return 0;
    fflush(NULL);
    if (strcmp(how, "_exit") == 0) _exit(7);
    if (strcmp(how, "abort") == 0) abort();
    if (strcmp(how, "kill") == 0) kill(getpid(), SIGKILL);
    if (strcmp(how, "segv") == 0) {
        volatile int *volatile nowhere = NULL;
        *nowhere = 1;
    }
    fail("there is no exit %s", how);
}

/* ---- Modes without an oracle: sqlite3 is called directly ---- */

static void loop(const struct workload *w, int interval) {
    char path[PATH_MAX + 64];
    sqlite3 *db;
    sqlite3_stmt *stmt;
    snprintf(path, sizeof path, "%s/loop.db", w->directory);
    if (sqlite3_open(path, &db) || sqlite3_exec(db, "CREATE TABLE IF NOT EXISTS t(v)", NULL, NULL, NULL) ||
        sqlite3_prepare_v2(db, "SELECT 'loop', ?", -1, &stmt, NULL)) {
        fail("loop: %s", sqlite3_errmsg(db));
    }
    printf("ready\n");
    fflush(stdout);
    long long done = 0;
    for (;;) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        char byte;
        sqlite3_bind_int64(stmt, 1, done);
        while (sqlite3_step(stmt) == SQLITE_ROW) {
        }
        sqlite3_reset(stmt);
        done++;
        if (poll(&input, 1, interval) > 0 && read(0, &byte, 1) <= 0) break;
    }
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    printf("{\"executions\": %lld}\n", done);
}

struct runner {
    pthread_t thread;
    long long executions;
};

static volatile int stop;

static void *flat_out(void *argument) {
    struct runner *me = argument;
    sqlite3 *db;
    sqlite3_stmt *stmt;
    long long done = 0;
    if (sqlite3_open(":memory:", &db) || sqlite3_prepare_v2(db, "SELECT ?, 'rate'", -1, &stmt, NULL)) fail("rate");
    while (!stop) {
        sqlite3_bind_int64(stmt, 1, done++);
        if (sqlite3_step(stmt) != SQLITE_ROW || sqlite3_step(stmt) != SQLITE_DONE) fail("rate");
        sqlite3_reset(stmt);
    }
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    me->executions = done;
    return NULL;
}

static void rate(const struct workload *w, double seconds) {
    struct runner *runners = calloc((size_t)w->threads, sizeof *runners);
    long long total = 0;
    for (int i = 0; i < w->threads; i++) {
        if (pthread_create(&runners[i].thread, NULL, flat_out, &runners[i])) fail("no thread");
    }
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&time, &time) == -1 && errno == EINTR) {
    }
    stop = 1;
    for (int i = 0; i < w->threads; i++) {
        pthread_join(runners[i].thread, NULL);
        total += runners[i].executions;
    }
    free(runners);
    printf("{\"executions\": %lld, \"threads\": %d, \"seconds\": %g}\n", total, w->threads, seconds);
}

/* ---- Arguments ---- */

static const char *value(char **arguments, int *i, const char *name) {
    size_t length = strlen(name);
    if (strncmp(arguments[*i], name, length) != 0) return NULL;
    if (arguments[*i][length] == '=') return arguments[*i] + length + 1;
    if (arguments[*i][length] != '\0' || arguments[*i + 1] == NULL) return NULL;
    return arguments[++*i];
}

int main(int count, char **arguments) {
    static char directory[PATH_MAX];
    struct workload w = {.seed = 1, .threads = 3};
    struct options o = {.interval = 5, .trace = 1, .exit = "normal"};
    if (count < 3 || realpath(arguments[1], directory) == NULL) {
        fprintf(stderr, "usage: workload DBDIR ORACLE.jsonl [options]; see the head of workload.c\n");
        return 2;
    }
    w.directory = directory;
    for (int i = 3; i < count; i++) {
        const char *text;
        if ((text = value(arguments, &i, "--seed"))) {
            w.seed = (unsigned)strtoul(text, NULL, 10);
        } else if ((text = value(arguments, &i, "--threads"))) {
            w.threads = atoi(text);
        } else if ((text = value(arguments, &i, "--count"))) {
            o.count = atol(text);
            o.mode = MODE_COUNT;
        } else if ((text = value(arguments, &i, "--interval"))) {
            o.interval = atoi(text);
        } else if ((text = value(arguments, &i, "--rate"))) {
            o.seconds = atof(text);
            o.mode = MODE_RATE;
        } else if ((text = value(arguments, &i, "--exit"))) {
            o.exit = text;
        } else if (strcmp(arguments[i], "--loop") == 0) {
            o.mode = MODE_LOOP;
        } else if (strcmp(arguments[i], "--no-trace") == 0) {
            o.trace = 0;
        } else if (strcmp(arguments[i], "--leave-running") == 0) {
            o.leave_running = 1;
        } else {
            fprintf(stderr, "workload: unknown argument %s\n", arguments[i]);
            return 2;
        }
    }
    if (w.threads < 1 || w.threads > 32) {
        fprintf(stderr, "workload: 1 to 32 threads\n");
        return 2;
    }
    oracle_start(o.trace);
    oracle_thread(0);
    if (o.mode == MODE_LOOP) {
        loop(&w, o.interval);
        return 0;
    }
    if (o.mode == MODE_RATE) {
        rate(&w, o.seconds);
        return 0;
    }
    if (o.mode == MODE_CASES) {
        run_cases(&w);
    } else {
        run_count(&w, o.count);
    }
    if (o.leave_running) leave_running(&w);
    printf("{\"executions\": %lld}\n", oracle_executions());
    oracle_write(arguments[2]);
    return die(o.exit);
}
