/*
 * A program that works all the time and checks every answer: busy THREADS EXECUTIONS
 * Each thread executes SELECT ?1+1 on its own connection, EXECUTIONS times, or until a line comes on stdin if that is 0.
 * Says "ready" when it begins and "fine N" at the end, N the executions in all; exit status 7.
 */
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

static volatile int stop;
static long wanted, total;

static void *work(void *unused)
{
    sqlite3 *db;
    sqlite3_stmt *s;
    long n = 0;
    (void)unused;
    if (sqlite3_open(":memory:", &db) || sqlite3_prepare_v2(db, "SELECT ?1+1", -1, &s, 0))
        abort();
    for (; wanted ? n < wanted : !stop; n++) {
        sqlite3_bind_int64(s, 1, n);
        if (sqlite3_step(s) != SQLITE_ROW || sqlite3_column_int64(s, 0) != n + 1 || sqlite3_reset(s))
            abort();
    }
    sqlite3_finalize(s);
    sqlite3_close(db);
    __sync_fetch_and_add(&total, n);
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t threads[64];
    int i, n = argc > 1 ? atoi(argv[1]) : 1;
    wanted = argc > 2 ? atol(argv[2]) : 0;
    puts("ready");
    fflush(stdout);
    for (i = 0; i < n; i++)
        if (pthread_create(&threads[i], 0, work, 0))
            abort();
    if (!wanted)
        getchar();
    stop = 1;
    for (i = 0; i < n; i++)
        pthread_join(threads[i], 0);
    printf("fine %ld\n", total);
    return 7;
}
