/* What goes in: bind parameters of every type and number, SQL texts of every length and form. */
#include <float.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

static void bind_types(struct connection *conn) {
    static const uint16_t wide[] = {'a', 0xe9, 0x20ac, 0xd83d, 0xde00, 'z'}; /* a é € 😀 z: 1+2+3+4+1 in UTF-8 */
    static const unsigned char blob[100] = {0, 1, 2, 255};
    struct statement *s = o_prepare(conn, "INSERT INTO bound VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)");

    oracle_case("every bind type");
    o_bind_int(s, 1, -1);
    o_bind_int64(s, 2, INT64_MAX);
    o_bind_double(s, 3, 0.1);
    o_bind_text(s, 4, "hello", 5);
    o_bind_text16(s, 5, wide, sizeof wide, 11);
    o_bind_blob(s, 6, blob, sizeof blob);
    o_bind_zeroblob(s, 7, 5000);
    o_bind_null(s, 8);
    o_bind_pointer(s, 9, &s, "statement");
    o_drain(s, 0);

    oracle_case("bindings kept over a reset");
    o_reset(s);
    o_drain(s, 0);
    o_reset(s);

    oracle_case("bindings partly replaced");
    o_bind_text(s, 1, "a number becomes text", 21);
    o_bind_int(s, 6, 7);
    o_bind_double(s, 4, 3.0); /* integral */
    o_bind_double(s, 3, DBL_MAX);
    o_drain(s, 0);
    o_reset(s);

    oracle_case("bindings cleared");
    o_clear_bindings(s);
    o_drain(s, 0);
    o_reset(s);

    oracle_case("empty values");
    o_bind_text(s, 1, "", 0);
    o_bind_blob(s, 2, "", 0);
    o_bind_zeroblob(s, 3, 0);
    o_bind_text(s, 4, "a\0b", 3); /* a NUL inside is part of the text */
    o_drain(s, 0);

    oracle_case("long values");
    o_reset(s);
    char *long_text = malloc(300000);
    memset(long_text, 'x', 300000);
    o_bind_text(s, 1, long_text, 300000);
    o_bind_blob(s, 2, long_text, 70000);
    o_bind_zeroblob(s, 3, 1 << 20);
    o_drain(s, 0);
    o_finalize(s);
    free(long_text);

    oracle_case("named and repeated parameters");
    s = o_prepare(conn, "SELECT :name, @name, $name, ?5, :name, ?5");
    o_bind_text(s, 1, "1", 1);
    o_bind_text(s, 2, "22", 2);
    o_bind_int(s, 5, 5);
    o_drain(s, 1);
    o_finalize(s);

    oracle_case("parameters with affinity");
    s = o_prepare(conn, "SELECT count(*) FROM bound WHERE a = ? AND b > ? AND d LIKE ?");
    o_bind_text(s, 1, "12", 2);
    o_bind_text(s, 2, "3.5", 3);
    o_bind_int(s, 3, 8);
    o_drain(s, 1);
    o_reset(s);
    o_drain(s, 1);
    o_finalize(s);
}

static void bind_encoding(const struct workload *w) {
    static const uint16_t wide[] = {'a', 0xe9, 0x20ac};
    struct connection *conn = open_file(w, "utf16.db", 0);
    oracle_case("UTF-16 database");
    o_run(conn, "PRAGMA encoding = 'UTF-16le'; CREATE TABLE t(a, b);");
    struct statement *s = o_prepare(conn, "INSERT INTO t VALUES(?, ?)");
    o_bind_text16(s, 1, wide, sizeof wide, sizeof wide);
    o_bind_text_stored(s, 2, "caf\xc3\xa9", 5, 8);
    o_drain(s, 0);
    o_finalize(s);
    o_close(conn);
}

static void bind_many(struct connection *conn, int count) {
    static char name[32];
    snprintf(name, sizeof name, "%d parameters", count);
    oracle_case(name);
    size_t room = (size_t)count * 2 + 64;
    char *sql = malloc(room);
    size_t length = (size_t)snprintf(sql, room, "SELECT 1 WHERE 0 IN (?");
    for (int i = 1; i < count; i++) {
        memcpy(sql + length, ",?", 2);
        length += 2;
    }
    memcpy(sql + length, ")", 2);
    struct statement *s = o_prepare(conn, sql);
    for (int i = 1; i <= count; i++) {
        switch (i % 5) {
        case 0: o_bind_text(s, i, "twelve bytes", 12); break;
        case 1: o_bind_int64(s, i, i); break;
        case 2: o_bind_blob(s, i, "abc", 3); break;
        case 3: o_bind_double(s, i, i + 0.5); break;
        default: break; /* stays NULL */
        }
    }
    o_drain(s, 0);
    o_reset(s);
    o_bind_null(s, count);
    o_drain(s, 0);
    o_finalize(s);
    free(sql);
}

void binds(const struct workload *w) {
    struct connection *conn = open_file(w, "binds.db", 0);
    oracle_case("binds");
    o_run(conn, "CREATE TABLE bound(a INT, b REAL, c, d TEXT, e, f BLOB, g, h, i)");
    bind_types(conn);
    bind_encoding(w);
    static const int counts[] = {1, 2, 63, 64, 65, 128, 999, 1000, 8191, 8192, 8193, 32766};
    int limit = sqlite3_limit(conn->db, SQLITE_LIMIT_VARIABLE_NUMBER, -1);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (counts[i] <= limit) bind_many(conn, counts[i]);
    }
    o_close(conn);
}

/* SELECT '....' of exactly `length` bytes, which ends in its own number, so that a cut is seen. */
static void text_of(struct connection *conn, int length) {
    static char name[32];
    snprintf(name, sizeof name, "SQL of %d bytes", length);
    oracle_case(name);
    char *sql = malloc((size_t)length + 1), tail[32];
    int end = snprintf(tail, sizeof tail, "', %d", length);
    memset(sql, 'x', (size_t)length);
    memcpy(sql, "SELECT '", 8);
    memcpy(sql + length - end, tail, (size_t)end + 1);
    struct statement *s = o_prepare(conn, sql);
    free(sql);
    o_drain(s, 1);
    o_reset(s);
    o_drain(s, 1);
    o_finalize(s);
}

void texts(const struct workload *w) {
    struct connection *conn = open_file(w, "texts.db", 0);
    static const int lengths[] = {32, 1024, 4095, 4096, 16383, 16384, 16385, 32768, 102400, 1048575, 1048576, 1048577, 1200000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) text_of(conn, lengths[i]);

    oracle_case("several statements in one text");
    o_run(conn, "SELECT 1; SELECT 2 ;  -- comment\nSELECT 3;;\n/* no statement */");
    oracle_case("text that begins with a comment");
    o_run(conn, "-- first a comment\nSELECT 4");
    oracle_case("white space and quotes");
    o_run(conn, "\n\t SELECT '\"\\ \x01\x7f', \"ro\"\n\tFROM (SELECT 1 AS ro)\r\n");
    oracle_case("UTF-8");
    o_run(conn, "SELECT 'h\xc3\xa9llo \xe2\x82\xac \xf0\x9f\x98\x80'");
    oracle_case("bytes that are not UTF-8");
    o_run(conn, "SELECT 'Latin-1 \xe9', 1");

    oracle_case("multi-byte characters across a boundary of 16384 bytes");
    char *sql = malloc(40000);
    strcpy(sql, "SELECT '");
    for (int i = 0; i < 11000; i++) strcat(sql + 8 + (size_t)i * 3, "\xe2\x82\xac");
    strcat(sql, "'");
    o_run(conn, sql);
    free(sql);

    oracle_case("prepare16");
    struct statement *s = o_prepare16(conn, "SELECT ?, 'sixteen'");
    o_bind_int(s, 1, 1);
    o_drain(s, 1);
    o_finalize(s);

    oracle_case("same address, other text of equal length");
    for (int i = 0; i < 200; i++) {
        char text[32];
        snprintf(text, sizeof text, "SELECT %03d, ?", i);
        s = o_prepare(conn, text);
        o_bind_int(s, 1, i);
        o_drain(s, 1);
        if (i % 3 == 0) o_reset(s);
        o_finalize(s);
    }
    oracle_case("prepared, never stepped");
    for (int i = 0; i < 20; i++) {
        s = o_prepare(conn, i % 2 ? "SELECT 'never'" : "SELECT 'nev3r'");
        if (i % 3 == 0) o_reset(s);
        o_finalize(s);
    }
    s = o_prepare(conn, "SELECT 'after'");
    o_drain(s, 1);
    o_finalize(s);
    o_close(conn);
}
