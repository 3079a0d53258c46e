/* What comes out: rows, early stops, changes, every result code. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

static void early_stops(struct connection *conn) {
    struct statement *s = o_prepare(conn, "SELECT id, name FROM person ORDER BY id");
    oracle_case("select to the end");
    o_drain(s, 100);
    o_reset(s);
    oracle_case("stopped by reset");
    o_steps(s, 7);
    o_reset(s);
    o_reset(s); /* a second one ends nothing */
    oracle_case("stopped by reset at the last row");
    o_steps(s, 100);
    o_reset(s);
    oracle_case("step after DONE resets by itself");
    o_drain(s, 100);
    o_drain(s, 100);
    o_steps(s, 1);
    oracle_case("stopped by finalize");
    o_finalize(s);

    oracle_case("executed many times");
    s = o_prepare(conn, "SELECT name FROM person WHERE id = ?");
    for (int i = 0; i < 300; i++) {
        o_bind_int(s, 1, i);
        int rc = o_step(s);
        if (rc == SQLITE_ROW && i % 4) o_drain(s, 0);
        o_reset(s);
    }
    o_finalize(s);

    oracle_case("two statements interleaved");
    struct statement *a = o_prepare(conn, "SELECT id FROM person WHERE id < 5");
    struct statement *b = o_prepare(conn, "SELECT id FROM person WHERE id > 95");
    o_steps(a, 2);
    o_steps(b, 1);
    o_steps(a, 1);
    o_drain(b, 4);
    o_drain(a, 1);
    o_steps(b, 3);
    o_steps(a, 1);
    o_finalize(b);
    o_finalize(a);

    oracle_case("null statement");
    if (sqlite3_step(NULL) != SQLITE_MISUSE || sqlite3_reset(NULL) || sqlite3_finalize(NULL)) fail("null statement");

    oracle_case("counters reset by the program");
    s = o_prepare(conn, "SELECT count(*) FROM person WHERE name > ? AND id < ?");
    o_bind_text(s, 1, "", 0);
    for (int i = 0; i < 8; i++) {
        o_bind_int(s, 2, i % 2 ? 90 : 5);
        o_drain(s, 1);
        if (i >= 2) o_reset_counters(s);
        o_reset(s);
        if (i >= 4) o_reset_counters(s);
    }
    o_finalize(s);
    oracle_case("explain");
    o_run(conn, "EXPLAIN SELECT 1; EXPLAIN QUERY PLAN SELECT * FROM person;");
}

static void changes(struct connection *conn) {
    oracle_case("changes");
    o_run(conn, "INSERT INTO item(label) VALUES('a'), ('b'), ('c')");
    o_run(conn, "SELECT * FROM item");
    o_run(conn, "UPDATE item SET label = label || '!' WHERE id >= 2");
    o_run(conn, "UPDATE item SET label = 'none' WHERE id = 999");
    o_run(conn, "PRAGMA user_version");
    o_run(conn, "REPLACE INTO item VALUES(1, 'replaced')");
    o_run(conn, "INSERT INTO item VALUES(1, 'again') ON CONFLICT(id) DO UPDATE SET label = excluded.label");
    o_run(conn, "INSERT INTO item VALUES(2, 'again') ON CONFLICT DO NOTHING");
    o_run(conn, "INSERT OR IGNORE INTO item VALUES(1, 'x'), (50, 'y')");
    o_run(conn, "WITH n(v) AS (VALUES(60), (61)) INSERT INTO item SELECT v, 'n' FROM n");
    o_run(conn, "DELETE FROM item WHERE id = 60");
    o_run(conn, "CREATE TABLE copied AS SELECT * FROM item");
    o_run(conn, "DELETE FROM copied");
    o_run(conn, "INSERT INTO wr VALUES('k', 1), ('l', 2); UPDATE wr SET v = v + 1; DELETE FROM wr WHERE k = 'k';");

    oracle_case("changes by triggers are not the statement's");
    o_run(conn, "INSERT INTO audited VALUES(1), (2), (3)");
    o_run(conn, "UPDATE audited SET v = v + 1");
    o_run(conn, "SELECT count(*) FROM audit");
    o_run(conn, "INSERT INTO view_of_audited VALUES(9)");

    oracle_case("changes by foreign key actions");
    o_run(conn, "INSERT INTO parent VALUES(1); INSERT INTO child VALUES(1, 1), (2, 1); DELETE FROM parent;");

    if (sqlite3_libversion_number() >= 3035000) {
        oracle_case("returning");
        struct statement *s = o_prepare(conn, "INSERT INTO item(label) VALUES('r1'), ('r2'), ('r3') RETURNING id");
        o_drain(s, 3);
        o_reset(s);
        oracle_case("returning, stopped by reset");
        o_steps(s, 1);
        o_reset(s);
        oracle_case("returning, stopped by finalize");
        o_steps(s, 2);
        o_finalize(s);
    }
    o_run(conn, "SELECT count(*), total(id) FROM item");
}

static void transactions(struct connection *conn) {
    oracle_case("transaction");
    o_run(conn, "BEGIN; INSERT INTO item(label) VALUES('t1'); SAVEPOINT one; INSERT INTO item(label) VALUES('t2');"
                "ROLLBACK TO one; SELECT count(*) FROM item; RELEASE one; COMMIT;");
    o_run(conn, "BEGIN IMMEDIATE; DELETE FROM item; ROLLBACK; SELECT count(*) FROM item;");
    o_run(conn, "SAVEPOINT outer; UPDATE item SET label = 'sp'; RELEASE outer;");
    o_run_fails(conn, "COMMIT", SQLITE_ERROR);
    o_run_fails(conn, "ROLLBACK TO nowhere", SQLITE_ERROR);
    oracle_case("conflict that rolls the transaction back");
    o_run(conn, "BEGIN; INSERT INTO item(label) VALUES('lost');");
    o_run_fails(conn, "INSERT OR ROLLBACK INTO item VALUES(1, 'dup')", SQLITE_CONSTRAINT);
    oracle_case("rollback under a running select");
    o_run(conn, "BEGIN; INSERT INTO item(label) VALUES('x');");
    struct statement *s = o_prepare(conn, "SELECT id FROM item");
    o_steps(s, 2);
    o_run(conn, "ROLLBACK");
    o_drain(s, -1);
    o_finalize(s);
}

static void execs(struct connection *conn) {
    oracle_case("sqlite3_exec");
    expect(o_exec(conn, "SELECT id FROM person WHERE id < 5; INSERT INTO item(label) VALUES('exec'); SELECT 1", -1),
           SQLITE_OK, conn, "exec");
    oracle_case("sqlite3_exec with an error");
    expect(o_exec(conn, "SELECT 1; INSERT INTO item VALUES(1, 'dup')", -1), SQLITE_CONSTRAINT, conn, "exec");
    for (int i = 0; i < 5; i++) {
        oracle_case("sqlite3_exec aborted by its callback");
        expect(o_exec(conn, "SELECT id, 'abort' FROM person", i), SQLITE_ABORT, conn, "exec");
        oracle_case("after the aborted one");
        o_run(conn, "SELECT id, 'after' FROM person LIMIT 3");
    }
    oracle_case("sqlite3_get_table");
    char **table;
    o_outside_begin();
    expect(sqlite3_get_table(conn->db, "SELECT id FROM person LIMIT 4", &table, NULL, NULL, NULL), SQLITE_OK, conn,
           "get_table");
    o_outside_end();
    sqlite3_free_table(table);
}

void results(const struct workload *w) {
    struct connection *conn = open_file(w, "results.db", 0);
    oracle_case("results");
    o_run(conn, "PRAGMA foreign_keys = ON;"
                "CREATE TABLE person(id INTEGER PRIMARY KEY, name TEXT);"
                "CREATE TABLE item(id INTEGER PRIMARY KEY, label TEXT);"
                "CREATE TABLE wr(k PRIMARY KEY, v) WITHOUT ROWID;"
                "CREATE TABLE audited(v); CREATE TABLE audit(note);"
                "CREATE TRIGGER log_insert AFTER INSERT ON audited BEGIN INSERT INTO audit VALUES('i'), ('j'); END;"
                "CREATE TRIGGER log_update AFTER UPDATE ON audited BEGIN UPDATE audit SET note = 'u'; END;"
                "CREATE VIEW view_of_audited AS SELECT v FROM audited;"
                "CREATE TRIGGER into_view INSTEAD OF INSERT ON view_of_audited BEGIN INSERT INTO audited VALUES(new.v); END;"
                "CREATE TABLE parent(id INTEGER PRIMARY KEY);"
                "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent ON DELETE CASCADE);"
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
                " INSERT INTO person SELECT i, 'name' || i FROM n;");
    early_stops(conn);
    changes(conn);
    transactions(conn);
    execs(conn);
    o_close(conn);
}

/* ---- Errors ---- */

static int refuse(void *context) {
    (void)context;
    return 1;
}

static void throw_error(sqlite3_context *context, int count, sqlite3_value **values) {
    (void)count;
    sqlite3_result_error_code(context, sqlite3_value_int(values[0]));
}

static void interrupt(sqlite3_context *context, int count, sqlite3_value **values) {
    (void)count;
    if (sqlite3_value_int(values[0]) == 3) sqlite3_interrupt(sqlite3_user_data(context));
    sqlite3_result_int(context, 1);
}

void errors(const struct workload *w) {
    struct connection *conn = open_file(w, "errors.db", 0);
    oracle_case("errors");
    o_run(conn, "PRAGMA foreign_keys = ON;"
                "CREATE TABLE u(id INTEGER PRIMARY KEY, k UNIQUE, n NOT NULL DEFAULT 0, c CHECK(c < 10));"
                "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE f(r REFERENCES p);"
                "CREATE TABLE wr(k PRIMARY KEY) WITHOUT ROWID;"
                "CREATE TABLE g(v); CREATE TRIGGER guard BEFORE INSERT ON g BEGIN SELECT raise(ABORT, 'no'); END;"
                "INSERT INTO u(id, k) VALUES(1, 'k'); INSERT INTO wr VALUES('k');");
    oracle_case("constraint violations");
    o_run_fails(conn, "INSERT INTO u(id) VALUES(1)", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT INTO u(k) VALUES('k')", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT INTO u(n) VALUES(NULL)", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT INTO u(c) VALUES(11)", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT INTO f VALUES(77)", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT INTO wr VALUES('k')", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT INTO g VALUES(1)", SQLITE_CONSTRAINT);
    oracle_case("some rows before the violation");
    o_run_fails(conn, "INSERT INTO u(k) VALUES('l'), ('m'), ('k')", SQLITE_CONSTRAINT);
    o_run_fails(conn, "INSERT OR FAIL INTO u(k) VALUES('l'), ('m'), ('k')", SQLITE_CONSTRAINT);
    o_run(conn, "SELECT count(*) FROM u");

    oracle_case("the same statement fails and succeeds");
    struct statement *s = o_prepare(conn, "INSERT INTO u(k) VALUES(?)");
    for (int i = 0; i < 6; i++) {
        o_bind_text(s, 1, i % 2 ? "k" : &"abcdef"[i], i % 2 ? 1 : 6 - i);
        o_step_is(s, i % 2 ? SQLITE_CONSTRAINT : SQLITE_DONE);
        o_reset(s);
    }
    oracle_case("error, then step again without reset");
    o_bind_text(s, 1, "k", 1);
    o_step_is(s, SQLITE_CONSTRAINT);
    o_step_is(s, SQLITE_CONSTRAINT);
    o_finalize(s);

    oracle_case("statement of sqlite3_prepare (v1) fails");
    s = o_prepare_v1(conn, "INSERT INTO u(k) VALUES('k')");
    o_step_is(s, SQLITE_ERROR);
    expect(o_reset(s), SQLITE_CONSTRAINT, conn, "reset of a v1 statement");
    o_finalize(s);
    oracle_case("statement of sqlite3_prepare (v1)");
    s = o_prepare_v1(conn, "SELECT id FROM u");
    o_steps(s, 2);
    o_reset(s);
    o_drain(s, -1);
    o_finalize(s);

    oracle_case("extended result codes");
    sqlite3_extended_result_codes(conn->db, 1);
    o_run_fails(conn, "INSERT INTO u(k) VALUES('k')", SQLITE_CONSTRAINT);
    sqlite3_extended_result_codes(conn->db, 0);

    oracle_case("not prepared, not executed");
    o_prepare_fails(conn, "SELEC 1", SQLITE_ERROR);
    o_prepare_fails(conn, "SELECT * FROM missing", SQLITE_ERROR);
    o_prepare_fails(conn, "SELECT 1 WHERE (", SQLITE_ERROR);

    oracle_case("mismatch");
    o_run_fails(conn, "INSERT INTO u(id) VALUES('no number')", SQLITE_MISMATCH);
    oracle_case("too big");
    sqlite3_limit(conn->db, SQLITE_LIMIT_LENGTH, 2000);
    o_run_fails(conn, "SELECT zeroblob(3000)", SQLITE_TOOBIG);
    sqlite3_limit(conn->db, SQLITE_LIMIT_LENGTH, 1000000000);

    oracle_case("user function fails");
    sqlite3_create_function(conn->db, "throw", 1, SQLITE_UTF8, NULL, throw_error, NULL, NULL);
    o_run_fails(conn, "SELECT throw(1)", SQLITE_ERROR);
    o_run_fails(conn, "SELECT throw(4)", SQLITE_ABORT);
    o_run_fails(conn, "SELECT throw(778)", SQLITE_IOERR);
    s = o_prepare(conn, "SELECT id, CASE id WHEN 3 THEN throw(13) END FROM p");
    o_run(conn, "INSERT INTO p VALUES(1), (2), (3), (4)");
    oracle_case("error after rows");
    o_steps(s, 2);
    o_step_is(s, SQLITE_FULL);
    o_finalize(s);

    oracle_case("interrupt");
    sqlite3_create_function(conn->db, "interrupt", 1, SQLITE_UTF8, conn->db, interrupt, NULL, NULL);
    s = o_prepare(conn, "SELECT id, interrupt(id) FROM p");
    while (o_step(s) == SQLITE_ROW) {
    }
    o_finalize(s);
    oracle_case("progress handler");
    sqlite3_progress_handler(conn->db, 1000, refuse, NULL);
    o_run_fails(conn, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n", SQLITE_INTERRUPT);
    sqlite3_progress_handler(conn->db, 0, NULL, NULL);

    oracle_case("read-only");
    struct connection *reader = open_file(w, "errors.db", 0);
    o_run(reader, "PRAGMA query_only = 1");
    o_run_fails(reader, "DELETE FROM u", SQLITE_READONLY);
    o_close(reader);
    o_close(conn);
}

/* ---- Two connections to one file ---- */

void busy(const struct workload *w) {
    struct connection *one = open_file(w, "busy.db", 0), *two = open_file(w, "busy.db", 0);
    oracle_case("busy");
    o_run(one, "CREATE TABLE t(v); INSERT INTO t VALUES(1), (2), (3);");
    o_run(two, "SELECT count(*) FROM t");
    o_run(one, "BEGIN EXCLUSIVE; INSERT INTO t VALUES(4);");
    struct statement *s = o_prepare(two, "SELECT v FROM t"), *begin = o_prepare(two, "BEGIN IMMEDIATE");
    oracle_case("busy without a timeout");
    o_step_is(s, SQLITE_BUSY);
    o_step_is(s, SQLITE_BUSY);
    o_reset(s);
    o_step_is(begin, SQLITE_BUSY);
    o_reset(begin);
    oracle_case("busy with a timeout");
    sqlite3_busy_timeout(two->db, 30);
    o_step_is(s, SQLITE_BUSY);
    o_reset(s);
    sqlite3_busy_timeout(two->db, 0);
    o_run(one, "COMMIT");
    oracle_case("no longer busy");
    o_drain(s, 4);
    o_drain(begin, 0);
    o_run(two, "INSERT INTO t VALUES(5); COMMIT;");

    oracle_case("commit is busy, then steps on");
    o_steps(s, 1); /* holds a shared lock */
    o_run(one, "BEGIN; INSERT INTO t VALUES(6);");
    struct statement *commit = o_prepare(one, "COMMIT");
    o_step_is(commit, SQLITE_BUSY);
    o_reset(s);
    if (o_step(commit) == SQLITE_BUSY) o_step_is(commit, SQLITE_DONE); /* the first does not suffice for 3.31 */
    o_finalize(commit);
    o_finalize(begin);
    o_finalize(s);

    oracle_case("snapshot is too old");
    o_run(one, "PRAGMA journal_mode = WAL");
    o_run(two, "BEGIN; SELECT count(*) FROM t;");
    o_run(one, "INSERT INTO t VALUES(7)");
    o_run_fails(two, "INSERT INTO t VALUES(8)", SQLITE_BUSY);
    o_run(two, "ROLLBACK");
    o_run(one, "PRAGMA wal_checkpoint");
    o_close(two);
    o_close(one);
}
