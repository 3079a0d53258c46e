/* The cases of the workload: each leaves its connection ready for the next. */
#ifndef CASES_H
#define CASES_H

#include "oracle.h"

struct workload {
    const char *directory; /* for database files; absolute */
    unsigned seed;
    int threads;
    int sqlite_has[8]; /* enum feature */
};

enum feature { HAS_FTS5, HAS_FTS4, HAS_RTREE, HAS_JSON, HAS_DBSTAT };

struct connection *open_file(const struct workload *w, const char *name, int flags);

void binds(const struct workload *w);
void texts(const struct workload *w);
void results(const struct workload *w);
void errors(const struct workload *w);
void busy(const struct workload *w);
void nesting(const struct workload *w);
void schemas(const struct workload *w);
void plans(const struct workload *w);
void extensions(const struct workload *w);
void threading(const struct workload *w);

#endif
