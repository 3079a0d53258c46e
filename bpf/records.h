/*
 * The wire format: what a hook inside or under the target tells the tracer.
 *
 * Every backend writes these records, and sqltrace/events/wire.py reads them; a test compares the two.
 * The includer defines u8 u16 u32 u64 s32 s64.  All members are naturally aligned, little endian, no padding.
 * Times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef SQLTRACE_RECORDS_H
#define SQLTRACE_RECORDS_H

#define RECORD_STATEMENT 1 /* an execution of a statement ended */
#define RECORD_TEXT 2      /* a piece of a statement's SQL */
#define RECORD_DATABASE 3  /* the main database file of the connection that a statement belongs to */
#define RECORD_PROCESS 4   /* a followed process was forked, called exec, or exited */
#define RECORD_MAPPING 5   /* a followed process mapped code from a file and waits for us */

struct record_header {
  u16 type;
  u16 flags;
  u32 size; /* of the whole record in bytes, this header included */
};

/* Flags of RECORD_STATEMENT: how the execution ended, and what is known about it. */
#define STATEMENT_END_MASK 0x000f
#define END_DONE 0
#define END_ERROR 1
#define END_RESET 2
#define END_FINALIZE 3
#define END_EXIT 4
#define END_UNSEEN 5               /* the statement was destroyed where no hook saw it */
#define END_DETACH 6               /* still running when the tracer left */
#define STATEMENT_AUTOCOMMIT 0x0010 /* sqlite3.autoCommit at the end */
#define STATEMENT_NESTED 0x0020     /* ran inside another statement's step on the same thread */
#define STATEMENT_INCOMPLETE 0x0040 /* its beginning was not seen, or a pairing was missed */
#define STATEMENT_NO_COUNTERS 0x0080 /* the struct could not be read at the end: counters, changes, vars are unknown */

/* The seven sqlite3_stmt_status counters that are kept, in this order. */
#define COUNTER_FULLSCAN_STEP 0 /* SQLITE_STMTSTATUS_FULLSCAN_STEP 1 */
#define COUNTER_SORT 1          /* SQLITE_STMTSTATUS_SORT 2 */
#define COUNTER_AUTOINDEX 2     /* SQLITE_STMTSTATUS_AUTOINDEX 3 */
#define COUNTER_VM_STEP 3       /* SQLITE_STMTSTATUS_VM_STEP 4 */
#define COUNTER_REPREPARE 4     /* SQLITE_STMTSTATUS_REPREPARE 5 */
#define COUNTER_FILTER_MISS 5   /* SQLITE_STMTSTATUS_FILTER_MISS 7 */
#define COUNTER_FILTER_HIT 6    /* SQLITE_STMTSTATUS_FILTER_HIT 8 */
#define COUNTERS 7

struct record_statement { /* 128 bytes */
  struct record_header header;
  u32 pid; /* thread group id, in the tracer's pid namespace */
  u32 tid;
  u64 begin_ns; /* entry of the first step */
  u64 end_ns;   /* return of the last step */
  u64 step_ns;  /* sum over its steps */
  u64 stmt;     /* addresses in the target */
  u64 conn;
  u64 text_id;  /* names the RECORD_TEXT and RECORD_DATABASE records sent before; 0 when they were lost */
  u64 rows;     /* steps that returned SQLITE_ROW */
  s64 changes;  /* rows inserted, updated or deleted by the statement itself */
  u64 bound_bytes; /* text and blob lengths, 8 for each number, over all bound parameters */
  u32 vars;        /* number of bind parameters */
  s32 rc;          /* result code, extended where the connection knows it; 100 when it was reset before DONE */
  u32 counters[COUNTERS]; /* this execution's share */
  u32 reserved;
};

/* Flags of RECORD_TEXT. */
#define TEXT_LAST 0x0001      /* no further piece follows */
#define TEXT_NULL 0x0002      /* Vdbe.zSql is NULL: SQLite's own statement; no bytes */
#define TEXT_TRUNCATED 0x0004 /* the text goes on, but we stopped here */

struct record_text { /* 56 bytes, then `length` bytes; a record's size is rounded up to 8 */
  struct record_header header;
  u32 pid;
  u32 tid;
  u64 text_id; /* unique within a session */
  u64 stmt;
  u64 conn;
  u64 offset; /* of this piece in the text, bytes */
  u32 length; /* of this piece, bytes, without the NUL */
  u32 reserved;
};

struct record_database { /* 40 bytes, then `length` bytes of Pager.zFilename, without the NUL */
  struct record_header header;
  u32 pid;
  u32 tid;
  u64 text_id;
  u64 conn;
  u32 length;
  u32 reserved;
};

#define PROCESS_FORK 1
#define PROCESS_EXEC 2
#define PROCESS_EXIT 3

struct record_process { /* 64 bytes */
  struct record_header header;
  u32 pid;
  u32 parent; /* PROCESS_FORK: the parent's pid, or 0: it was there, and is met by its first hit; else 0 */
  u64 time_ns;
  u64 cgroup_id;
  u32 uid;
  u32 gid;
  u32 action;
  s32 exit_code; /* PROCESS_EXIT: as in wait status, or -1 when not known */
  u8 comm[16];
};

struct record_mapping { /* 32 bytes */
  struct record_header header;
  u32 pid;
  u32 tid;
  u64 time_ns;
  u64 reserved;
};

#endif
