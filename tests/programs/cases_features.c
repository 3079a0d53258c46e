/* Statements in statements, changing schemas, what the planner does, and SQLite's own SQL. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

/* ---- Nested executions ---- */

struct lookup {
    struct connection *conn;
    struct statement *cached;
};

/* lookup(n): a prepared statement that is kept, stopped before its end for even n. */
static void lookup(sqlite3_context *context, int count, sqlite3_value **values) {
    struct lookup *self = sqlite3_user_data(context);
    (void)count;
    if (self->cached == NULL) self->cached = o_prepare(self->conn, "SELECT v FROM inner_table WHERE id >= ?");
    o_bind_int(self->cached, 1, sqlite3_value_int(values[0]));
    o_steps(self->cached, 1);
    sqlite3_result_int(context, sqlite3_column_int(self->cached->stmt, 0));
    if (sqlite3_value_int(values[0]) % 2) o_drain(self->cached, -1);
    o_reset(self->cached);
}

/* evaluate(sql): any statement, so that the nesting goes as deep as its text. */
static void evaluate(sqlite3_context *context, int count, sqlite3_value **values) {
    struct lookup *self = sqlite3_user_data(context);
    (void)count;
    struct statement *s = o_prepare(self->conn, (const char *)sqlite3_value_text(values[0]));
    int rc = o_step(s);
    if (rc == SQLITE_ROW) sqlite3_result_value(context, sqlite3_column_value(s->stmt, 0));
    o_finalize(s);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) sqlite3_result_error_code(context, rc);
}

void nesting(const struct workload *w) {
    struct connection *conn = open_file(w, "nesting.db", 0), *other = o_open(":memory:", 0);
    struct lookup here = {conn, NULL}, there = {other, NULL};
    static const char schema[] = "CREATE TABLE inner_table(id INTEGER PRIMARY KEY, v);"
                                 "INSERT INTO inner_table VALUES(1, 10), (2, 20), (3, 30), (4, 40), (5, 50);"
                                 "CREATE TABLE outer_table(v);";
    oracle_case("nesting");
    o_run(conn, schema);
    o_run(other, schema);
    sqlite3_create_function(conn->db, "lookup", 1, SQLITE_UTF8, &here, lookup, NULL, NULL);
    sqlite3_create_function(conn->db, "lookup_there", 1, SQLITE_UTF8, &there, lookup, NULL, NULL);
    sqlite3_create_function(conn->db, "evaluate", 1, SQLITE_UTF8, &here, evaluate, NULL, NULL);

    oracle_case("user function that runs SQL");
    o_run(conn, "SELECT id, lookup(id) FROM inner_table");
    oracle_case("user function that runs SQL on another connection");
    o_run(conn, "SELECT id, lookup_there(id) FROM inner_table");
    oracle_case("changes of nested statements");
    o_run(conn, "INSERT INTO outer_table SELECT lookup(id) FROM inner_table");
    o_run(conn, "UPDATE outer_table SET v = evaluate('INSERT INTO inner_table(v) VALUES(60)') WHERE rowid = 2");
    oracle_case("three deep");
    o_run(conn, "SELECT evaluate('SELECT evaluate(''SELECT lookup(1)'')')");
    oracle_case("nested error");
    o_run_fails(conn, "SELECT evaluate('INSERT INTO inner_table VALUES(1, 1)')", SQLITE_CONSTRAINT);
    oracle_case("outer stopped early");
    struct statement *s = o_prepare(conn, "SELECT lookup(id) FROM inner_table");
    o_steps(s, 2);
    o_finalize(s);
    oracle_case("nesting ends");
    o_finalize(here.cached);
    o_finalize(there.cached);
    o_close(other);
    o_close(conn);
}

/* ---- Schemas ---- */

void schemas(const struct workload *w) {
    struct connection *conn = open_file(w, "schemas.db", 0), *other = open_file(w, "schemas.db", 0);
    char sql[1200];
    oracle_case("schemas");
    o_run(conn, "CREATE TABLE t(a, b); INSERT INTO t VALUES(1, 2), (3, 4), (5, 6);");

    struct statement *s = o_prepare(conn, "SELECT * FROM t WHERE a > ?");
    o_bind_int(s, 1, 2);
    o_drain(s, 2);
    oracle_case("schema changed by this connection");
    o_run(conn, "CREATE INDEX t_a ON t(a)");
    o_drain(s, 2);
    o_reset(s);
    o_drain(s, 2);
    oracle_case("schema changed by another connection");
    o_run(other, "ALTER TABLE t ADD COLUMN c DEFAULT 'c'");
    o_drain(s, 2);
    o_reset(s);
    oracle_case("reprepared, then stopped early");
    o_run(other, "CREATE INDEX t_b ON t(b)");
    o_steps(s, 1);
    o_reset(s);
    oracle_case("v1 statement after a schema change");
    struct statement *legacy = o_prepare_v1(conn, "SELECT a FROM t");
    o_run(conn, "CREATE TABLE u(x)");
    o_step_is(legacy, SQLITE_ERROR);
    expect(o_reset(legacy), SQLITE_SCHEMA, conn, "reset of a v1 statement");
    o_finalize(legacy);
    oracle_case("table gone");
    o_run(conn, "UPDATE t SET b = 0 WHERE a = 1");
    struct statement *update = o_prepare(conn, "UPDATE t SET b = 1");
    o_run(conn, "DROP TABLE t");
    o_step_is(s, SQLITE_ERROR);
    o_step_is(update, SQLITE_ERROR);
    o_finalize(update);
    o_finalize(s);

    oracle_case("attached, temporary");
    snprintf(sql, sizeof sql, "ATTACH '%s/attached.db' AS side; CREATE TABLE side.s(v); INSERT INTO s VALUES(1);"
             "SELECT * FROM side.s; DETACH side;", w->directory);
    o_run(conn, sql);
    o_run(conn, "CREATE TEMP TABLE tt(v); INSERT INTO tt VALUES(1), (2); SELECT * FROM tt; DROP TABLE tt;");
    oracle_case("pragmas and maintenance");
    o_run(conn, "CREATE TABLE a(x, y); CREATE INDEX a_x ON a(x); INSERT INTO a VALUES(1, 2), (1, 3), (2, 4);"
                "ANALYZE; PRAGMA integrity_check; PRAGMA table_info(a); REINDEX; PRAGMA cache_size = -100;"
                "VACUUM;");
    if (sqlite3_libversion_number() >= 3025000) o_run(conn, "ALTER TABLE a RENAME COLUMN y TO z; VACUUM;");
    o_close(other);
    o_close(conn);

    oracle_case("memory");
    conn = o_open(":memory:", 0);
    o_run(conn, "CREATE TABLE m(v); INSERT INTO m VALUES(1), (2); SELECT * FROM m;");
    o_close(conn);
    oracle_case("database without a name");
    conn = o_open("", 0);
    o_run(conn, "CREATE TABLE m(v); INSERT INTO m VALUES(1);");
    o_close(conn);
    oracle_case("existing database");
    conn = open_file(w, "schemas.db", 0);
    o_run(conn, "SELECT count(*) FROM a");
    o_close(conn);
    conn = open_file(w, "schemas.db", 0);
    oracle_case("blob handle");
    o_run(conn, "CREATE TABLE b(data); INSERT INTO b VALUES(zeroblob(100));");
    sqlite3_blob *blob;
    expect(sqlite3_blob_open(conn->db, "main", "b", "data", 1, 1, &blob), SQLITE_OK, conn, "blob_open");
    expect(sqlite3_blob_write(blob, "bytes", 5, 0), SQLITE_OK, conn, "blob_write");
    expect(sqlite3_blob_close(blob), SQLITE_OK, conn, "blob_close");
    o_blob_closed(conn, 1);
    o_run(conn, "SELECT substr(data, 1, 5) FROM b");
    o_close(conn);
}

/* ---- Plans ---- */

void plans(const struct workload *w) {
    struct connection *conn = open_file(w, "plans.db", 0);
    oracle_case("plans");
    o_run(conn, "CREATE TABLE big(id INTEGER PRIMARY KEY, k, v); CREATE TABLE small(k, w); CREATE TABLE keyed(k UNIQUE, w);");
    oracle_case("recursive, 1000 rows");
    struct statement *s = o_prepare(conn, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i FROM n");
    o_drain(s, 1000);
    o_reset(s);
    o_steps(s, 400);
    o_finalize(s);
    o_run(conn, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
                " INSERT INTO big SELECT i, i * 7919 % 1000, i % 10 FROM n");
    o_run(conn, "INSERT INTO small SELECT k, id FROM big WHERE id % 25 = 0; INSERT INTO keyed SELECT * FROM small;");
    oracle_case("full scan");
    o_run(conn, "SELECT count(*) FROM big WHERE v = 3");
    oracle_case("sort");
    s = o_prepare(conn, "SELECT id FROM big ORDER BY k, v");
    o_drain(s, 1000);
    o_reset(s);
    o_steps(s, 10);
    o_reset(s);
    o_drain(s, 1000);
    o_finalize(s);
    oracle_case("automatic index");
    s = o_prepare(conn, "SELECT count(*) FROM big JOIN small ON small.k = big.k");
    o_drain(s, 1);
    o_drain(s, 1);
    o_finalize(s);
    oracle_case("filter");
    o_run(conn, "ANALYZE");
    o_run(conn, "SELECT count(*) FROM big, small, keyed WHERE small.k = big.k AND keyed.k = big.k AND small.w > 500");
    oracle_case("group, distinct, window, union");
    o_run(conn, "SELECT v, count(*) FROM big GROUP BY v; SELECT DISTINCT v FROM big;"
                "SELECT v FROM big UNION SELECT w FROM small; SELECT max(id) FROM big;");
    if (sqlite3_libversion_number() >= 3025000) {
        o_run(conn, "SELECT id, sum(v) OVER (ORDER BY id ROWS 3 PRECEDING) FROM big LIMIT 50");
    }

    oracle_case("a mix that the seed decides");
    static const char *const mix[] = {
        "SELECT * FROM big WHERE id > ?",
        "UPDATE big SET v = v + 1 WHERE id < ?",
        "SELECT k, count(*) FROM big WHERE id < ? GROUP BY k ORDER BY 2",
        "INSERT INTO small VALUES(?, 1)",
        "DELETE FROM small WHERE k > ?",
    };
    struct statement *prepared[sizeof mix / sizeof *mix];
    unsigned state = w->seed * 2654435761u + 1;
    for (size_t i = 0; i < sizeof mix / sizeof *mix; i++) prepared[i] = o_prepare(conn, mix[i]);
    for (int i = 0; i < 200; i++) {
        state = state * 1664525u + 1013904223u;
        s = prepared[(state >> 16) % (sizeof mix / sizeof *mix)];
        o_reset(s);
        o_bind_int(s, 1, (int)(state >> 8) % 1000);
        for (unsigned steps = (state >> 24) % 50; steps > 0; steps--) {
            if (o_step(s) != SQLITE_ROW) break;
        }
    }
    for (size_t i = 0; i < sizeof mix / sizeof *mix; i++) o_finalize(prepared[i]);
    o_close(conn);
}

/* ---- SQL that SQLite's extensions run by themselves ---- */

static void full_text(struct connection *conn, const char *module) {
    char sql[256];
    snprintf(sql, sizeof sql, "CREATE VIRTUAL TABLE doc_%s USING %s(title, body)", module, module);
    o_run(conn, sql);
    snprintf(sql, sizeof sql, "INSERT INTO doc_%s VALUES(?, ?)", module);
    struct statement *s = o_prepare(conn, sql);
    for (int i = 0; i < 20; i++) {
        int length = snprintf(sql, sizeof sql, "word%d common rare%d", i, i / 7);
        o_bind_text(s, 1, "title", 5);
        o_bind_text(s, 2, sql, length);
        o_drain(s, 0);
        o_reset(s);
    }
    o_finalize(s);
    snprintf(sql, sizeof sql, "SELECT rowid, title FROM doc_%s WHERE doc_%s MATCH ?", module, module);
    s = o_prepare(conn, sql);
    o_bind_text(s, 1, "common", 6);
    o_drain(s, 20);
    o_reset(s);
    o_steps(s, 3);
    o_finalize(s);
    snprintf(sql, sizeof sql, "UPDATE doc_%s SET body = 'changed' WHERE rowid = 4; DELETE FROM doc_%s WHERE rowid < 4;"
             "INSERT INTO doc_%s(doc_%s) VALUES('optimize'); DROP TABLE doc_%s;", module, module, module, module, module);
    o_run(conn, sql);
}

void extensions(const struct workload *w) {
    struct connection *conn = open_file(w, "extensions.db", 0);
    if (w->sqlite_has[HAS_FTS5]) {
        oracle_case("fts5");
        full_text(conn, "fts5");
        o_run(conn, "CREATE VIRTUAL TABLE r USING fts5(x); INSERT INTO r VALUES('a b'), ('b c'), ('c a');"
                    "SELECT * FROM r WHERE r MATCH 'a' ORDER BY rank; INSERT INTO r(r) VALUES('integrity-check');");
    }
    if (w->sqlite_has[HAS_FTS4]) {
        oracle_case("fts4");
        full_text(conn, "fts4");
    }
    if (w->sqlite_has[HAS_RTREE]) {
        oracle_case("rtree");
        o_run(conn, "CREATE VIRTUAL TABLE box USING rtree(id, x0, x1);"
                    "INSERT INTO box VALUES(1, 0, 5), (2, 3, 9), (3, 20, 30);"
                    "SELECT id FROM box WHERE x1 > 4 AND x0 < 10; DELETE FROM box WHERE id = 2;");
    }
    if (w->sqlite_has[HAS_JSON]) {
        oracle_case("virtual table: json_each");
        o_run(conn, "SELECT key, value FROM json_each('[1, 2, 3]')");
    }
    if (w->sqlite_has[HAS_DBSTAT]) {
        oracle_case("virtual table: dbstat");
        o_run(conn, "SELECT count(*) FROM dbstat");
    }
    oracle_case("virtual table: pragma function");
    o_run(conn, "CREATE TABLE t(a, b, c); SELECT name FROM pragma_table_info('t')");
#if SQLITE_VERSION_NUMBER >= 3036000 && !defined(SQLITE_OMIT_DESERIALIZE)
    oracle_case("sqlite3_serialize");
    sqlite3_int64 size;
    o_outside_begin();
    unsigned char *copy = sqlite3_serialize(conn->db, "main", &size, 0);
    o_outside_end();
    if (copy == NULL) fail("serialize");
    sqlite3_free(copy);
#endif
    o_close(conn);
}
