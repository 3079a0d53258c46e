/* What the resolver looks for in SQLite 3.50.4, and nothing else: its shapes without its substance, 20 kB small.
 * Each SKEW_ macro takes one fact away or turns it into its near miss (tests/resolve/test_near_misses.py).
 * Offsets are those of the amalgamation on 64-bit machines; SLOTS(_) lists the members of sqlite3_api_routines. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#ifndef SOURCE_ID
#define SOURCE_ID "2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3"
#endif
#ifndef VERSION
#define VERSION "3.50.4"
#define VERSION_NUMBER 3050004
#endif
#ifndef COMMIT_MESSAGE
#define COMMIT_MESSAGE "cannot commit transaction - SQL statements in progress"
#endif
#ifndef ZSQL
#define ZSQL 248
#endif

#define FUNCTION __attribute__((noinline, noclone, noipa))
#define AT(type, p, offset) (*(type *)((u8 *)(p) + (offset)))

typedef struct { u8 value[20]; u16 flags; u8 rest[34]; } Mem;
typedef struct Vdbe Vdbe;

FUNCTION void sqlite3_log(int code, const char *format, const char *text) { __asm__ volatile("" ::"r"(format), "r"(text), "r"(code)); }
FUNCTION int complain(const char *message) { __asm__ volatile("" ::"r"(message)); return 21; }

FUNCTION int sqlite3VdbeHalt(Vdbe *p) {
    if (AT(i64, p, 56)) complain("%s-mj%06X9%02X");
    return AT(int, p, 52);
}

FUNCTION int sqlite3VdbeReset(Vdbe *p) {
    if (AT(u8, p, 199) == 2) sqlite3VdbeHalt(p);
    return AT(int, p, 52);
}

FUNCTION int sqlite3VdbeExec(Vdbe *p) {
    switch (AT(int, p, 48)) {
    case 1: complain(COMMIT_MESSAGE); break;
    case 2: complain("cannot open savepoint - SQL statements in progress"); break;
    case 3: complain("cannot release savepoint - SQL statements in progress"); break;
    case 4: complain("cannot start a transaction within a transaction"); break;
    }
    return sqlite3VdbeHalt(p) ? 17 : 100;
}

#ifdef SKEW_SECOND_EXEC
FUNCTION int second_exec(Vdbe *p) {
    if (AT(int, p, 48)) complain(COMMIT_MESSAGE);
    complain("cannot start a transaction within a transaction");
    return sqlite3VdbeHalt(p);
}
#endif

FUNCTION int sqlite3_step(Vdbe *p) {
    if (!p) return complain("API called with NULL prepared statement");
    if (!AT(i64, p, 0)) return complain("API called with finalized prepared statement");
    int rc;
    do rc = sqlite3VdbeExec(p); while (rc == 17);
    return rc;
}

#ifdef SKEW_SECOND_STEP
FUNCTION int second_step(Vdbe *p) {
    if (!p) return complain("API called with NULL prepared statement");
    return sqlite3VdbeExec(p);
}
#endif

FUNCTION int blobSeekToRow(Vdbe *p) {
    complain("no such rowid: %lld");
    return sqlite3VdbeExec(p);
}

FUNCTION int sqlite3_finalize(Vdbe *p) {
    if (!p) return 0;
    if (!AT(i64, p, 0)) return complain("API called with finalized prepared statement");
    return sqlite3VdbeReset(p) & 255;
}

FUNCTION int sqlite3_reset(Vdbe *p) {
    if (!p) return 0;
    int rc = sqlite3VdbeReset(p);
    AT(int, p, 48) = 0;
    return rc;
}

#ifdef SKEW_SECOND_RESET
FUNCTION int second_reset(Vdbe *p) {
    if (!p) return 0;
    int rc = sqlite3VdbeReset(p);
    AT(int, p, 48) = 1;
    return rc;
}
#endif

FUNCTION int sqlite3Prepare(void *db, const char *sql, int n, u32 flags, Vdbe *old, void **statement, const char **tail) {
    if (n > 1000000) return complain("statement too long");
    __asm__ volatile("" ::"r"(db), "r"(sql), "r"(flags), "r"(old), "r"(statement), "r"(tail));
    return 0;
}

FUNCTION int sqlite3LockAndPrepare(void *db, const char *sql, int n, u32 flags, Vdbe *old, void **statement, const char **tail) {
    int rc = sqlite3Prepare(db, sql, n, flags, old, statement, tail);
    return rc == 17 ? sqlite3Prepare(db, sql, n, flags, old, statement, tail) : rc;
}

#ifndef PREPARE_V2_FLAGS
#define PREPARE_V2_FLAGS 0x80
#endif
FUNCTION int sqlite3_prepare(void *db, const char *sql, int n, void **s, const char **t) { return sqlite3LockAndPrepare(db, sql, n, 0, 0, s, t) & 255; }
FUNCTION int sqlite3_prepare_v2(void *db, const char *sql, int n, void **s, const char **t) { return sqlite3LockAndPrepare(db, sql, n, PREPARE_V2_FLAGS, 0, s, t) & 255; }
FUNCTION int sqlite3_prepare_v3(void *db, const char *sql, int n, u32 flags, void **s, const char **t) { return sqlite3LockAndPrepare(db, sql, n, 0x80 | (flags & 15), 0, s, t) & 255; }

FUNCTION int sqlite3Close(void *db, int force) { return force ? 0 : complain("unable to close due to unfinalized statements or unfinished backups") + !db; }
FUNCTION int sqlite3_close(void *db) { return sqlite3Close(db, 0) & 255; }
FUNCTION int sqlite3_close_v2(void *db) { return sqlite3Close(db, 1) & 255; }

FUNCTION int vdbeUnbind(Vdbe *p, u32 i) {
    if (!p || AT(u8, p, 199) != 1) {
        if (p) sqlite3_log(21, "bind on a busy prepared statement: [%s]", AT(char *, p, ZSQL));
        return 21;
    }
    if (i >= (u32)AT(short, p, 32)) { AT(int, AT(u8 *, p, 0), 80) = 25; return 25; }
    Mem *variable = &AT(Mem *, p, 128)[i];
    variable->flags = 1;
    AT(int, AT(u8 *, p, 0), 80) = 0;
    return 0;
}

FUNCTION int sqlite3_stmt_status(Vdbe *p, int op, int reset) {
    if (!p) return 0;
    if (op == 99) return complain("memory");
    u32 *counter = &AT(u32, p, 212 + 4 * (i64)op);
    u32 v = *counter;
    if (reset) *counter = 0;
    return v;
}

FUNCTION const char *sqlite3_sql(Vdbe *p) { return p ? AT(char *, p, ZSQL) : 0; }
FUNCTION void *sqlite3_db_handle(Vdbe *p) { return p ? AT(void *, p, 0) : 0; }
FUNCTION int sqlite3_bind_parameter_count(Vdbe *p) { return p ? AT(short, p, 32) : 0; }
FUNCTION const char *sqlite3_libversion(void) { return VERSION; }
FUNCTION int sqlite3_libversion_number(void) { return VERSION_NUMBER; }
FUNCTION const char *sqlite3_sourceid(void) { return SOURCE_ID; }

#ifndef SKEW_NO_TABLE
#define FILLER(name) FUNCTION int sqlite3_##name(void) { return 0; }
FILLERS(FILLER)
#define SLOT(name) (void *)&sqlite3_##name,
#ifdef SKEW_SWAPPED_SLOTS
#define sqlite3_step sqlite3_reset
#endif
__attribute__((used, visibility("default"))) void *const sqlite3Apis[] = { SLOTS(SLOT) };
#undef sqlite3_step
#ifdef SKEW_SECOND_TABLE
FUNCTION int other_step(Vdbe *p) { return p ? 100 : 101; }
#define sqlite3_step other_step
__attribute__((used, visibility("default"))) void *const otherApis[] = { SLOTS(SLOT) };
#undef sqlite3_step
#endif
#endif

#ifdef SKEW_SHORT_TABLE
__attribute__((used, visibility("default"))) void *const shortApis[] = { (void *)sqlite3_libversion, (void *)sqlite3_libversion_number, (void *)sqlite3_reset };
#endif

#ifdef SKEW_GO_BUILD_INFO
__attribute__((used, visibility("default"))) const char info[] = "\377 Go buildinf:\010\002path\tx\ndep\tmodernc.org/sqlite\tv1.29.1\th1:abc=\n";
#endif

void *const keep[] __attribute__((used, visibility("default"))) = {
    (void *)sqlite3_step, (void *)sqlite3_finalize, (void *)sqlite3_reset, (void *)sqlite3_prepare, (void *)sqlite3_prepare_v2,
    (void *)sqlite3_prepare_v3, (void *)sqlite3_close, (void *)sqlite3_close_v2, (void *)blobSeekToRow, (void *)vdbeUnbind,
    (void *)sqlite3_stmt_status, (void *)sqlite3_sourceid, (void *)sqlite3_sql, (void *)sqlite3_db_handle,
};
