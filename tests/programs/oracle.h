/*
 * A program's own record of what it asks of SQLite, to compare a tracer's record with.
 *
 * The o_* functions wrap SQLite's: they do the call, and write one line of JSON for each execution that ends.
 * What the program knows for sure (bound lengths, rows, result codes, how the execution ended) comes from
 * its own calls; counters come from sqlite3_stmt_status, read right before the first step and after the last.
 * Executions that the program does not step itself (inside sqlite3_exec, FTS5, pragma functions) are
 * recorded through sqlite3_trace_v2; fields that it cannot know then are null.
 * The wrappers stop the program with a message when SQLite does not answer as the case expects.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <sqlite3.h>
#include <stddef.h>

/* One sqlite3 connection; the number is unique within a run, unlike its address. */
struct connection {
    sqlite3 *db;
    int number;
    int memory;               /* its main database has no file */
    int temporary;            /* ... and no name either */
    struct foreign *foreign;  /* running executions that only sqlite3_trace_v2 shows */
    struct foreign *ended;    /* the last of them */
};

/* One prepared statement, and the execution that it is in the middle of. */
struct statement {
    sqlite3_stmt *stmt;
    struct connection *conn;
    int number;
    int vars;
    long long *bound; /* bytes of each bind parameter, [vars] */
    int running;
    int internal;  /* began inside another statement's step */
    int profiles;  /* sqlite3_trace_v2 PROFILE callbacks during this execution */
    long long rows;
    int before[7]; /* counters when it began */
    int total_changes; /* of the connection when it began */
};

/* Set-up.  trace 0: connections get no sqlite3_trace_v2 callback, and only own steps are recorded. */
void oracle_start(int trace);
void oracle_thread(int number); /* each thread before its first wrapper */
void oracle_case(const char *name);
void oracle_write(const char *path); /* all threads' lines; after it nothing is recorded */
long long oracle_executions(void);

void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void expect(int rc, int wanted, struct connection *conn, const char *what);

struct connection *o_open(const char *path, int flags);
void o_close(struct connection *conn);

struct statement *o_prepare(struct connection *conn, const char *sql);
struct statement *o_prepare_tail(struct connection *conn, const char *sql, const char **tail);
struct statement *o_prepare_v1(struct connection *conn, const char *sql);
struct statement *o_prepare16(struct connection *conn, const char *ascii);
void o_prepare_fails(struct connection *conn, const char *sql, int wanted);

/* `stored` is the length in bytes that SQLite keeps, where it differs from what is handed over. */
void o_bind_null(struct statement *s, int i);
void o_bind_int(struct statement *s, int i, int value);
void o_bind_int64(struct statement *s, int i, sqlite3_int64 value);
void o_bind_double(struct statement *s, int i, double value);
void o_bind_text(struct statement *s, int i, const char *text, int length);
void o_bind_text_stored(struct statement *s, int i, const char *text, int length, int stored);
void o_bind_text16(struct statement *s, int i, const void *text, int length, int stored);
void o_bind_blob(struct statement *s, int i, const void *data, int length);
void o_bind_zeroblob(struct statement *s, int i, int length);
void o_bind_pointer(struct statement *s, int i, void *pointer, const char *type);
void o_clear_bindings(struct statement *s);

int o_step(struct statement *s);
void o_step_is(struct statement *s, int wanted); /* primary result code */
void o_steps(struct statement *s, int rows);     /* that many rows, then no further step */
void o_drain(struct statement *s, long long rows); /* to DONE; rows < 0: any number */
int o_reset(struct statement *s);
int o_finalize(struct statement *s);
void o_reset_counters(struct statement *s);
void o_abandon(struct statement *s); /* it is left running when the process ends */

/* Prepare, step to the end and finalize each statement of `sql`; run expects DONE, run_fails an error. */
void o_run(struct connection *conn, const char *sql);
void o_run_fails(struct connection *conn, const char *sql, int wanted);

/* sqlite3_exec; returns its result.  With abort_after >= 0 the callback returns 1 at that row (from 0). */
int o_exec(struct connection *conn, const char *sql, int abort_after);
/* Executions inside other public functions (sqlite3_get_table, sqlite3_serialize) between these two. */
void o_outside_begin(void);
void o_outside_end(void);
/* An execution whose SQL is NULL, made by sqlite3_blob_open and ended by sqlite3_blob_close. */
void o_blob_closed(struct connection *conn, int rows);

#endif
