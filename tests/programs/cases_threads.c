/* Threads: each with its own file, several on one connection, and one execution that changes hands. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "cases.h"

struct shared {
    struct connection *conn;
    struct statement *statement;
    pthread_mutex_t lock;
};

struct worker {
    pthread_t thread;
    const struct workload *w;
    struct shared *shared;
    int number;
};

static void own_file(const struct worker *me) {
    char name[32];
    snprintf(name, sizeof name, "thread%d.db", me->number);
    struct connection *conn = open_file(me->w, name, 0);
    oracle_case("thread with a file of its own");
    o_run(conn, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    struct statement *insert = o_prepare(conn, "INSERT INTO t(v) VALUES(?)");
    struct statement *query = o_prepare(conn, "SELECT id FROM t WHERE v <> ?");
    for (int i = 0; i < 60; i++) {
        o_bind_int(insert, 1, i * me->number);
        o_drain(insert, 0);
        o_reset(insert);
        o_bind_text(query, 1, "thread", i % 7);
        if (i % 3) {
            o_drain(query, i + 1);
        } else {
            o_steps(query, 1);
        }
        o_reset(query);
    }
    o_finalize(query);
    o_finalize(insert);
    o_run_fails(conn, "INSERT INTO t(id) VALUES(1)", SQLITE_CONSTRAINT);
    o_close(conn);
}

static void one_connection(const struct worker *me) {
    oracle_case("thread with a statement of its own on a shared connection");
    struct statement *s = o_prepare(me->shared->conn, "SELECT v, ?1 FROM common WHERE v < ?1");
    for (int i = 0; i < 60; i++) {
        o_bind_int(s, 1, i % 11);
        if (i % 2) {
            o_drain(s, i % 11);
        } else if (i % 11 > 0) {
            o_steps(s, 1);
        }
        o_reset(s);
    }
    o_finalize(s);
}

static void one_statement(const struct worker *me) {
    oracle_case("threads share a statement");
    for (int i = 0; i < 60; i++) {
        pthread_mutex_lock(&me->shared->lock);
        o_bind_int(me->shared->statement, 1, me->number % 11);
        o_drain(me->shared->statement, me->number % 11);
        o_reset(me->shared->statement);
        pthread_mutex_unlock(&me->shared->lock);
    }
}

static void *work(void *argument) {
    const struct worker *me = argument;
    oracle_thread(me->number);
    own_file(me);
    if (me->shared) {
        one_connection(me);
        one_statement(me);
    }
    return NULL;
}

static void *take_over(void *argument) {
    oracle_thread(99);
    oracle_case("execution that another thread began");
    o_steps(argument, 1);
    o_reset(argument);
    return NULL;
}

void threading(const struct workload *w) {
    if (!sqlite3_threadsafe()) return;
    struct shared shared = {o_open(":memory:", SQLITE_OPEN_FULLMUTEX), NULL, PTHREAD_MUTEX_INITIALIZER};
    struct worker *workers = calloc((size_t)w->threads, sizeof *workers);
    oracle_case("threads");
    o_run(shared.conn, "CREATE TABLE common(v); INSERT INTO common VALUES(0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10)");
    shared.statement = o_prepare(shared.conn, "SELECT v FROM common WHERE v < ?");
    for (int i = 0; i < w->threads; i++) {
        workers[i] = (struct worker){.w = w, .shared = &shared, .number = i + 1};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) fail("no thread");
    }
    for (int i = 0; i < w->threads; i++) pthread_join(workers[i].thread, NULL);
    free(workers);

    pthread_t thread;
    o_bind_int(shared.statement, 1, 9);
    o_steps(shared.statement, 2);
    if (pthread_create(&thread, NULL, take_over, shared.statement)) fail("no thread");
    pthread_join(thread, NULL);
    oracle_case("after the threads");
    o_drain(shared.statement, 9);
    o_finalize(shared.statement);
    o_close(shared.conn);
}
