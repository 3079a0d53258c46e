#define _GNU_SOURCE
#include "oracle.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_THREADS 64
#define MAX_DEPTH 16
#define COUNTERS 7
#define COUNTER_REPREPARE 4 /* its place in counter_table */

static const struct {
    int op;
    int since; /* SQLite's release number */
    const char *key;
} counter_table[COUNTERS] = {
    {1, 3006000, "fullscan_steps"}, {2, 3006000, "sorts"},       {3, 3007000, "autoindexes"},
    {4, 3008000, "vm_steps"},       {5, 3020000, "reprepares"},  {7, 3038000, "filter_misses"},
    {8, 3038000, "filter_hits"},
};

/* An execution that was not begun by o_step. */
struct foreign {
    sqlite3_stmt *stmt;
    char *sql; /* of its own: the statement may be gone when we ask */
    int vars;
    int internal;
    int profiles;
    long line; /* where its record begins in the thread's text */
    long long rows;
    int before[COUNTERS];
    struct foreign *next;
};

struct thread {
    int number;
    long tid;
    const char *name; /* of the case */
    struct statement *stack[MAX_DEPTH]; /* statements whose step has not returned */
    int depth;
    struct statement *ending;           /* inside o_reset or o_finalize */
    int outside;                        /* inside sqlite3_exec or another function that executes statements */
    sqlite3_stmt *outer;                /* ... the statement which that function steps */
    long last_line;                     /* where the last recorded line begins, for o_exec to amend */
    char *text;
    size_t length;
    size_t room;
};

struct profile {
    char *sql;
    long long count;
};

static struct thread threads[MAX_THREADS];
static int thread_count;
static __thread struct thread *self;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct profile *profiles;
static size_t profile_count, profile_room;
static int tracing, silent, connections, statements;
static long long executions;

void fail(const char *format, ...) {
    va_list list;
    fprintf(stderr, "workload: case %s: ", self && self->name ? self->name : "-");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(3);
}

void expect(int rc, int wanted, struct connection *conn, const char *what) {
    if ((rc & 0xff) != wanted) {
        fail("%s: result %d where %d was expected: %s", what, rc, wanted, conn ? sqlite3_errmsg(conn->db) : "-");
    }
}

void oracle_start(int trace) { tracing = trace; }

void oracle_thread(int number) {
    pthread_mutex_lock(&lock);
    if (thread_count == MAX_THREADS) fail("too many threads");
    self = &threads[thread_count++];
    pthread_mutex_unlock(&lock);
    self->number = number;
    self->tid = syscall(SYS_gettid);
    self->name = "start";
}

void oracle_case(const char *name) { self->name = name; }

long long oracle_executions(void) { return __atomic_load_n(&executions, __ATOMIC_RELAXED); }

/* ---- JSON ---- */

static void put_bytes(const char *data, size_t length) {
    if (self->length + length > self->room) {
        self->room = (self->length + length) * 2 + 65536;
        self->text = realloc(self->text, self->room);
        if (self->text == NULL) fail("out of memory");
    }
    memcpy(self->text + self->length, data, length);
    self->length += length;
}

static void put(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void put(const char *format, ...) {
    char buffer[256];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    if (length < 0 || (size_t)length >= sizeof buffer) fail("a piece of JSON is too long");
    put_bytes(buffer, (size_t)length);
}

static int is_utf8(const unsigned char *s) {
    while (*s) {
        int more = *s < 0x80 ? 0 : *s >= 0xc2 && *s < 0xe0 ? 1 : *s >= 0xe0 && *s < 0xf0 ? 2 : *s >= 0xf0 && *s < 0xf5 ? 3 : -1;
        if (more < 0) return 0;
        if (*s == 0xe0 && s[1] < 0xa0) return 0;
        if (*s == 0xed && s[1] > 0x9f) return 0;
        if (*s == 0xf0 && s[1] < 0x90) return 0;
        if (*s == 0xf4 && s[1] > 0x8f) return 0;
        for (s++; more > 0; more--, s++) {
            if ((*s & 0xc0) != 0x80) return 0;
        }
    }
    return 1;
}

static void put_base64(const char *text) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t length = strlen(text);
    put("{\"b64\":\"");
    for (size_t i = 0; i < length; i += 3) {
        unsigned v = (unsigned char)text[i] << 16;
        if (i + 1 < length) v |= (unsigned)(unsigned char)text[i + 1] << 8;
        if (i + 2 < length) v |= (unsigned char)text[i + 2];
        char out[4] = {digits[v >> 18], digits[v >> 12 & 63], i + 1 < length ? digits[v >> 6 & 63] : '=',
                       i + 2 < length ? digits[v & 63] : '='};
        put_bytes(out, 4);
    }
    put("\",\"len\":%zu}", length);
}

static void put_string(const char *text) {
    if (text == NULL) {
        put("null");
        return;
    }
    if (!is_utf8((const unsigned char *)text)) {
        put_base64(text);
        return;
    }
    put("\"");
    const char *from = text;
    for (; *text; text++) {
        if (*text == '"' || *text == '\\' || (unsigned char)*text < 0x20) {
            put_bytes(from, (size_t)(text - from));
            put("\\u%04x", *text);
            from = text + 1;
        }
    }
    put_bytes(from, (size_t)(text - from));
    put("\"");
}

/* ---- One line per execution ---- */

#define UNKNOWN (-1)

struct line {
    struct connection *conn;
    const char *sql;
    const char *end; /* "stopped" is reset or finalize: the trace does not tell which */
    const char *source;
    int stmt;
    int vars;
    long long bound_bytes, rows, changes;
    int rc;
    int autocommit;
    int internal;
    int late; /* a tracer can notice this end only later */
    int profiles;
    const int *counters; /* NULL: unknown */
};

static void put_number(const char *key, long long value) {
    if (value == UNKNOWN) {
        put(",\"%s\":null", key);
    } else {
        put(",\"%s\":%lld", key, value);
    }
}

static void put_flag(const char *key, int value) {
    put(",\"%s\":%s", key, value == UNKNOWN ? "null" : value ? "true" : "false");
}

static void record(const struct line *line) {
    __atomic_add_fetch(&executions, 1, __ATOMIC_RELAXED);
    if (silent) return;
    self->last_line = (long)self->length;
    put("{\"record\":\"execution\",\"case\":\"%s\",\"source\":\"%s\",\"thread\":%d,\"tid\":%ld", self->name,
        line->source, self->number, self->tid);
    put(",\"conn\":%d", line->conn->number);
    put_number("stmt", line->stmt);
    put(",\"db\":");
    put_string(line->conn->temporary ? "" : line->conn->memory ? ":memory:" : sqlite3_db_filename(line->conn->db, "main"));
    put(",\"sql\":");
    put_string(line->sql);
    put_number("sql_bytes", line->sql ? (long long)strlen(line->sql) : 0);
    put_number("vars", line->vars);
    put_number("bound_bytes", line->bound_bytes);
    put_number("rows", line->rows);
    put_number("changes", line->changes);
    put_number("rc", line->rc);
    put(",\"end\":\"%s\"", line->end);
    for (int i = 0; i < COUNTERS; i++) {
        /* The trace announces a statement when it was prepared anew already. */
        int known = line->counters && (line->stmt != UNKNOWN || i != COUNTER_REPREPARE);
        put_number(counter_table[i].key, known ? line->counters[i] : UNKNOWN);
    }
    put_flag("autocommit", line->autocommit);
    put_flag("internal", line->internal);
    put_flag("late", line->late);
    put_number("profiles", line->profiles);
    put("}\n");
}

void oracle_write(const char *path) {
    FILE *file = fopen(path, "w");
    if (file == NULL) fail("cannot write %s", path);
    for (int i = 0; i < thread_count; i++) {
        if (threads[i].length && fwrite(threads[i].text, threads[i].length, 1, file) != 1) fail("cannot write %s", path);
    }
    self->length = 0;
    for (size_t i = 0; i < profile_count; i++) {
        put("{\"record\":\"profile\",\"sql\":");
        put_string(profiles[i].sql);
        put(",\"count\":%lld}\n", profiles[i].count);
        free(profiles[i].sql);
    }
    put("{\"record\":\"end\",\"executions\":%lld,\"sqlite_version\":\"%s\",\"trace\":%s}\n", executions,
        sqlite3_libversion(), tracing ? "true" : "false");
    if (fwrite(self->text, self->length, 1, file) != 1 || fclose(file) != 0) fail("cannot write %s", path);
    for (int i = 0; i < thread_count; i++) {
        free(threads[i].text);
        threads[i].text = NULL;
        threads[i].length = threads[i].room = 0;
    }
    free(profiles);
    profiles = NULL;
    profile_count = 0;
    silent = 1;
}

/* ---- What SQLite knows about an execution ---- */

static void read_counters(sqlite3_stmt *stmt, int *out) {
    int release = sqlite3_libversion_number();
    for (int i = 0; i < COUNTERS; i++) {
        out[i] = release >= counter_table[i].since ? sqlite3_stmt_status(stmt, counter_table[i].op, 0) : 0;
    }
}

static void share(sqlite3_stmt *stmt, const int *before, int *out) {
    read_counters(stmt, out);
    for (int i = 0; i < COUNTERS; i++) out[i] -= before[i];
}

static int is_dml(const char *sql) {
    static const char *const words[] = {"INSERT", "UPDATE", "DELETE", "REPLACE"};
    if (sql == NULL) return 0;
    sql += strspn(sql, " \t\n;");
    if (strncasecmp(sql, "WITH", 4) == 0) { /* the workload has no such word inside a WITH ... SELECT */
        return strcasestr(sql, "INSERT INTO") != NULL;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strncasecmp(sql, words[i], strlen(words[i])) == 0) return 1;
    }
    return 0;
}

/* The connection's extended code for what step returned; stale codes of other calls are not taken. */
static int extended(struct connection *conn, int rc) {
    int code = sqlite3_extended_errcode(conn->db);
    return (code & 0xff) == (rc & 0xff) ? code : rc;
}

/* ---- sqlite3_trace_v2 ---- */

static void count_profile(const char *sql) {
    pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < profile_count && strcmp(profiles[i].sql, sql) != 0) i++;
    if (i == profile_count) {
        if (profile_count == profile_room) {
            profile_room = profile_room * 2 + 64;
            profiles = realloc(profiles, profile_room * sizeof *profiles);
            if (profiles == NULL) fail("out of memory");
        }
        profiles[profile_count].sql = strdup(sql);
        profiles[profile_count++].count = 0;
    }
    profiles[i].count++;
    pthread_mutex_unlock(&lock);
}

static struct foreign **find_foreign(struct connection *conn, sqlite3_stmt *stmt) {
    struct foreign **at = &conn->foreign;
    while (*at && (*at)->stmt != stmt) at = &(*at)->next;
    return at;
}

static void forget(struct connection *conn) {
    if (conn->ended) {
        free(conn->ended->sql);
        free(conn->ended);
        conn->ended = NULL;
    }
}

static void begin_foreign(struct connection *conn, sqlite3_stmt *stmt) {
    struct foreign *f = calloc(1, sizeof *f);
    if (f == NULL) fail("out of memory");
    f->stmt = stmt;
    f->sql = strdup(sqlite3_sql(stmt));
    f->vars = sqlite3_bind_parameter_count(stmt);
    f->internal = self->depth > 0 || self->outer != NULL || !self->outside;
    if (self->outside && self->outer == NULL) self->outer = stmt;
    read_counters(stmt, f->before);
    f->next = conn->foreign;
    conn->foreign = f;
}

static void end_foreign(struct connection *conn, struct foreign **at, const char *end, int rc, int late) {
    struct foreign *f = *at;
    *at = f->next;
    if (self->outer == f->stmt) self->outer = NULL;
    int counters[COUNTERS];
    if (!late) {
        share(f->stmt, f->before, counters);
        f->profiles++;
    }
    struct line line = {
        .conn = conn,
        .sql = f->sql,
        .end = end,
        .source = "trace",
        .stmt = UNKNOWN,
        .vars = f->vars,
        .bound_bytes = f->vars ? UNKNOWN : 0,
        .rows = f->rows,
        .changes = late ? UNKNOWN : is_dml(f->sql) ? sqlite3_changes(conn->db) : 0,
        .rc = rc,
        .autocommit = late ? UNKNOWN : sqlite3_get_autocommit(conn->db),
        .internal = f->internal,
        .late = late,
        .profiles = f->profiles,
        .counters = late ? NULL : counters,
    };
    record(&line);
    f->line = self->last_line;
    forget(conn);
    conn->ended = f;
}

/*
 * A step that meets a changed schema ends with a PROFILE call, prepares anew and begins again without a STMT
 * call.  It is one execution: take the record of the first attempt back.
 */
static struct foreign **revive(struct connection *conn, sqlite3_stmt *stmt) {
    struct foreign *f = conn->ended;
    if (f == NULL || f->stmt != stmt || f->line != self->last_line) return find_foreign(conn, stmt);
    self->length = (size_t)f->line;
    __atomic_sub_fetch(&executions, 1, __ATOMIC_RELAXED);
    conn->ended = NULL;
    f->next = conn->foreign;
    conn->foreign = f;
    return &conn->foreign;
}

static int on_trace(unsigned kind, void *context, void *p, void *x) {
    struct connection *conn = context;
    sqlite3_stmt *stmt = p;
    struct statement *own = self->ending ? self->ending : self->depth ? self->stack[self->depth - 1] : NULL;
    /* Statements that load the schema have no text, and only their rows are announced. */
    if (silent || sqlite3_sql(stmt) == NULL) return 0;
    if (kind == SQLITE_TRACE_PROFILE) count_profile(sqlite3_sql(stmt));
    if (own != NULL && own->stmt == stmt) {
        if (kind == SQLITE_TRACE_PROFILE) own->profiles++;
        return 0;
    }
    struct foreign **at = find_foreign(conn, stmt);
    (void)x;
    if (kind != SQLITE_TRACE_STMT && *at == NULL) at = revive(conn, stmt);
    if (kind == SQLITE_TRACE_STMT && *at == NULL) {
        /* The text is "-- " and more for a nested statement; and so it is for a trigger, but that one comes
         * under the statement which fires it, and that is known already. */
        begin_foreign(conn, stmt);
    } else if (kind == SQLITE_TRACE_ROW && *at != NULL) {
        (*at)->rows++;
    } else if (kind == SQLITE_TRACE_PROFILE && *at != NULL) {
        int stopped = sqlite3_stmt_busy(stmt);
        end_foreign(conn, at, stopped ? "stopped" : "done", stopped ? SQLITE_ROW : SQLITE_DONE, 0);
    }
    return 0;
}

/* ---- Connections and statements ---- */

struct connection *o_open(const char *path, int flags) {
    struct connection *conn = calloc(1, sizeof *conn);
    if (conn == NULL) fail("out of memory");
    conn->memory = strcmp(path, ":memory:") == 0;
    conn->temporary = *path == 0;
    conn->number = __atomic_add_fetch(&connections, 1, __ATOMIC_RELAXED);
    expect(sqlite3_open_v2(path, &conn->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | flags, NULL), SQLITE_OK, conn,
           path);
    if (tracing) {
        sqlite3_trace_v2(conn->db, SQLITE_TRACE_STMT | SQLITE_TRACE_ROW | SQLITE_TRACE_PROFILE, on_trace, conn);
    }
    return conn;
}

void o_close(struct connection *conn) {
    expect(sqlite3_close(conn->db), SQLITE_OK, conn, "close");
    if (conn->foreign) fail("connection %d: an execution inside SQLite did not end", conn->number);
    forget(conn);
    free(conn);
}

static struct statement *adopt(struct connection *conn, sqlite3_stmt *stmt) {
    struct statement *s = calloc(1, sizeof *s);
    if (s == NULL) fail("out of memory");
    s->stmt = stmt;
    s->conn = conn;
    s->number = __atomic_add_fetch(&statements, 1, __ATOMIC_RELAXED);
    s->vars = sqlite3_bind_parameter_count(stmt);
    s->bound = calloc((size_t)s->vars + 1, sizeof *s->bound);
    if (s->bound == NULL) fail("out of memory");
    return s;
}

struct statement *o_prepare_tail(struct connection *conn, const char *sql, const char **tail) {
    sqlite3_stmt *stmt = NULL;
    expect(sqlite3_prepare_v2(conn->db, sql, -1, &stmt, tail), SQLITE_OK, conn, sql);
    return stmt ? adopt(conn, stmt) : NULL;
}

struct statement *o_prepare(struct connection *conn, const char *sql) { return o_prepare_tail(conn, sql, NULL); }

struct statement *o_prepare_v1(struct connection *conn, const char *sql) {
    sqlite3_stmt *stmt = NULL;
    expect(sqlite3_prepare(conn->db, sql, -1, &stmt, NULL), SQLITE_OK, conn, sql);
    return adopt(conn, stmt);
}

struct statement *o_prepare16(struct connection *conn, const char *ascii) {
    uint16_t wide[512];
    size_t length = strlen(ascii);
    if (length >= 512) fail("prepare16: text too long");
    for (size_t i = 0; i <= length; i++) wide[i] = (unsigned char)ascii[i];
    sqlite3_stmt *stmt = NULL;
    expect(sqlite3_prepare16_v2(conn->db, wide, -1, &stmt, NULL), SQLITE_OK, conn, ascii);
    return adopt(conn, stmt);
}

void o_prepare_fails(struct connection *conn, const char *sql, int wanted) {
    sqlite3_stmt *stmt = NULL;
    expect(sqlite3_prepare_v2(conn->db, sql, -1, &stmt, NULL), wanted, conn, sql);
    if (stmt) fail("a statement from a text that cannot be prepared");
}

/* ---- Bindings ---- */

static void bound(struct statement *s, int i, int rc, long long bytes) {
    expect(rc, SQLITE_OK, s->conn, "bind");
    s->bound[i - 1] = bytes;
}

void o_bind_null(struct statement *s, int i) { bound(s, i, sqlite3_bind_null(s->stmt, i), 0); }
void o_bind_int(struct statement *s, int i, int value) { bound(s, i, sqlite3_bind_int(s->stmt, i, value), 8); }
void o_bind_int64(struct statement *s, int i, sqlite3_int64 value) {
    bound(s, i, sqlite3_bind_int64(s->stmt, i, value), 8);
}
void o_bind_double(struct statement *s, int i, double value) {
    bound(s, i, sqlite3_bind_double(s->stmt, i, value), 8);
}
void o_bind_text(struct statement *s, int i, const char *text, int length) {
    o_bind_text_stored(s, i, text, length, length);
}
void o_bind_text_stored(struct statement *s, int i, const char *text, int length, int stored) {
    bound(s, i, sqlite3_bind_text(s->stmt, i, text, length, SQLITE_TRANSIENT), stored);
}
void o_bind_text16(struct statement *s, int i, const void *text, int length, int stored) {
    bound(s, i, sqlite3_bind_text16(s->stmt, i, text, length, SQLITE_TRANSIENT), stored);
}
void o_bind_blob(struct statement *s, int i, const void *data, int length) {
    bound(s, i, sqlite3_bind_blob(s->stmt, i, data, length, SQLITE_TRANSIENT), length);
}
void o_bind_zeroblob(struct statement *s, int i, int length) {
    bound(s, i, sqlite3_bind_zeroblob(s->stmt, i, length), length);
}
void o_bind_pointer(struct statement *s, int i, void *pointer, const char *type) {
    bound(s, i, sqlite3_bind_pointer(s->stmt, i, pointer, type, NULL), 0);
}
void o_clear_bindings(struct statement *s) {
    expect(sqlite3_clear_bindings(s->stmt), SQLITE_OK, s->conn, "clear_bindings");
    memset(s->bound, 0, (size_t)s->vars * sizeof *s->bound);
}

/* ---- Execution ---- */

static void finish(struct statement *s, const char *sql, const char *end, int rc, const int *counters) {
    long long bytes = 0;
    for (int i = 0; i < s->vars; i++) bytes += s->bound[i];
    int late = strcmp(end, "exit") == 0;
    /* A statement that got no lock, or could not be prepared anew, leaves the count of an earlier one. */
    int changed = sqlite3_total_changes(s->conn->db) != s->total_changes;
    struct line line = {
        .conn = s->conn,
        .sql = sql,
        .end = end,
        .source = "program",
        .stmt = s->number,
        .vars = s->vars,
        .bound_bytes = bytes,
        .rows = s->rows,
        .changes = is_dml(sql) && changed ? sqlite3_changes(s->conn->db) : 0,
        .rc = rc,
        .autocommit = sqlite3_get_autocommit(s->conn->db),
        .internal = s->internal,
        .late = late,
        .profiles = tracing ? s->profiles : UNKNOWN,
        .counters = counters,
    };
    s->running = 0;
    record(&line);
}

int o_step(struct statement *s) {
    if (!s->running) {
        s->running = 1;
        s->internal = self->depth > 0;
        s->rows = 0;
        s->profiles = 0;
        s->total_changes = sqlite3_total_changes(s->conn->db);
        read_counters(s->stmt, s->before);
    }
    if (self->depth == MAX_DEPTH) fail("statements are nested too deep");
    self->stack[self->depth++] = s;
    int rc = sqlite3_step(s->stmt);
    self->depth--;
    if (rc == SQLITE_ROW) {
        s->rows++;
        return rc;
    }
    int counters[COUNTERS];
    int code = rc == SQLITE_DONE ? rc : extended(s->conn, rc);
    share(s->stmt, s->before, counters);
    finish(s, sqlite3_sql(s->stmt), rc == SQLITE_DONE ? "done" : "error", code, counters);
    return rc;
}

void o_step_is(struct statement *s, int wanted) { expect(o_step(s), wanted, s->conn, sqlite3_sql(s->stmt)); }

void o_steps(struct statement *s, int rows) {
    for (int i = 0; i < rows; i++) o_step_is(s, SQLITE_ROW);
}

void o_drain(struct statement *s, long long rows) {
    long long seen = 0;
    int rc;
    while ((rc = o_step(s)) == SQLITE_ROW) seen++;
    expect(rc, SQLITE_DONE, s->conn, sqlite3_sql(s->stmt));
    if (rows >= 0 && seen != rows) fail("%lld rows instead of %lld: %.200s", seen, rows, sqlite3_sql(s->stmt));
}

int o_reset(struct statement *s) {
    if (!s->running) return sqlite3_reset(s->stmt);
    int counters[COUNTERS];
    share(s->stmt, s->before, counters);
    self->ending = s;
    int rc = sqlite3_reset(s->stmt);
    self->ending = NULL;
    finish(s, sqlite3_sql(s->stmt), "reset", SQLITE_ROW, counters);
    return rc;
}

int o_finalize(struct statement *s) {
    int rc;
    if (s->running) {
        int counters[COUNTERS];
        char *sql = strdup(sqlite3_sql(s->stmt));
        share(s->stmt, s->before, counters);
        self->ending = s;
        rc = sqlite3_finalize(s->stmt);
        self->ending = NULL;
        finish(s, sql, "finalize", SQLITE_ROW, counters);
        free(sql);
    } else {
        rc = sqlite3_finalize(s->stmt);
    }
    free(s->bound);
    free(s);
    return rc;
}

void o_abandon(struct statement *s) {
    int counters[COUNTERS];
    share(s->stmt, s->before, counters);
    s->profiles = 0;
    finish(s, sqlite3_sql(s->stmt), "exit", SQLITE_ROW, counters);
}

void o_reset_counters(struct statement *s) {
    for (int i = 0; i < COUNTERS; i++) {
        if (sqlite3_libversion_number() >= counter_table[i].since) sqlite3_stmt_status(s->stmt, counter_table[i].op, 1);
    }
}

void o_run(struct connection *conn, const char *sql) {
    while (*sql) {
        struct statement *s = o_prepare_tail(conn, sql, &sql);
        if (s == NULL) continue; /* white space or a comment */
        o_drain(s, -1);
        o_finalize(s);
    }
}

void o_run_fails(struct connection *conn, const char *sql, int wanted) {
    struct statement *s = o_prepare(conn, sql);
    int rc;
    while ((rc = o_step(s)) == SQLITE_ROW) {
    }
    expect(rc, wanted, conn, sql);
    o_finalize(s);
}

/* ---- Executions inside other functions of SQLite ---- */

void o_outside_begin(void) { self->outside++; }
void o_outside_end(void) { self->outside--; }

struct countdown {
    int left;
};

static int on_row(void *context, int columns, char **values, char **names) {
    struct countdown *rows = context;
    (void)columns;
    (void)values;
    (void)names;
    return rows->left >= 0 && rows->left-- == 0;
}

/* The last line was recorded before sqlite3_exec returned, with DONE: put the true result into it. */
static void amend(const char *from, const char *to) {
    char *at = strstr(self->text + self->last_line, from);
    if (at == NULL) fail("the last line has no %s", from);
    size_t offset = (size_t)(at - self->text), tail = self->length - offset - strlen(from);
    char *rest = malloc(tail);
    if (rest == NULL) fail("out of memory");
    memcpy(rest, at + strlen(from), tail);
    self->length = offset;
    put_bytes(to, strlen(to));
    put_bytes(rest, tail);
    free(rest);
}

int o_exec(struct connection *conn, const char *sql, int abort_after) {
    struct countdown rows = {abort_after};
    if (!tracing) return sqlite3_exec(conn->db, sql, on_row, &rows, NULL);
    o_outside_begin();
    int rc = sqlite3_exec(conn->db, sql, on_row, &rows, NULL);
    o_outside_end();
    if (rc == SQLITE_ABORT && conn->foreign) {
        end_foreign(conn, &conn->foreign, "unseen", SQLITE_ROW, 1);
    } else if (rc != SQLITE_OK && !silent) {
        char code[32];
        put_bytes("", 1); /* ends the text for strstr */
        self->length--;
        snprintf(code, sizeof code, "\"rc\":%d,", extended(conn, rc));
        amend("\"rc\":101,", code);
        put_bytes("", 1);
        self->length--;
        amend("\"end\":\"done\"", "\"end\":\"error\"");
    }
    return rc;
}

void o_blob_closed(struct connection *conn, int rows) {
    struct line line = {
        .conn = conn,
        .end = "finalize",
        .source = "program",
        .stmt = UNKNOWN,
        .vars = UNKNOWN,
        .bound_bytes = UNKNOWN,
        .rows = rows,
        .changes = 0,
        .rc = SQLITE_ROW,
        .autocommit = UNKNOWN,
        .internal = 1,
        .profiles = 0,
    };
    record(&line);
}
