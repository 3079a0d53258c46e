/*
 * The ring: shared memory into which hooks inside the target write records, and which the tracer reads.
 *
 * The target creates it (a memfd, so that it has no path), the tracer maps it through /proc/PID/fd, and the descriptor
 * is closed.  It outlives the target, so a killed process loses nothing that its hooks had written.
 * sqltrace/backends/ring.py is the reader, and has the same offsets.  The includer defines u8 u16 u32 u64 s32 s64.
 *
 *   ring_header | u64 seq[slots] | slots of 64 bytes | spill | struct execution table[executions]
 *
 * A record takes ceil(size / 64) consecutive slots, counted without end; slot n lies at n modulo `slots`.
 * One that begins near the end runs on into the spill, so that every record is contiguous.
 * Its first slot is published last: seq[n modulo slots] = n + 1.  Because the number is absolute, nothing needs to be
 * cleared, a lap is never mistaken for another, and a reader can find its place again behind a record that was never
 * published because its writer died.
 */
#ifndef SQLTRACE_RING_H
#define SQLTRACE_RING_H

#define RING_MAGIC 0x31474e4952545153 /* "SQTRING1" */
#define RING_SLOT 64
#define RING_PIECE 16384                   /* text in one record, at most */
#define RING_SPILL 20480                   /* whole pages, and more than the largest record */
#define RING_HEADER 4096

/* Indexes of ring_header.lost, which backends/ring.py names. */
#define LOST_STATEMENT 0  /* no room in the ring */
#define LOST_TEXT 1
#define LOST_DATABASE 2
#define LOST_EXECUTION 3  /* no room in the table: an execution was not followed at all */
#define LOST_THREAD 4     /* no room among the threads: a nested statement may not be marked as one */
#define LOSSES 8

struct ring_header {
  u64 magic;
  u32 slots; /* a power of two */
  u32 executions;
  u32 closed; /* set by the tracer when it leaves: hooks that are still on the stack write nothing any more */
  u32 waits;  /* a hook that finds the ring full waits for the reader, as long as that gives signs of life */
  u64 beat;   /* counted up by the reader, some times a second */
  u64 silent; /* the beat at which a hook has waited in vain: nobody waits again until there is another */
  u32 reserved[6];
  u64 head; /* slots reserved by writers */
  u64 head_line[7];
  u64 tail; /* slots freed by the reader */
  u64 tail_line[7];
  u64 hits; /* ends of executions that a hook saw */
  u64 hits_line[7];
  u64 text_id; /* the last one given out */
  u64 text_line[7];
  u64 lost[LOSSES];
};

/* A statement that was executed, and its execution if one is running.  In shared memory, so that executions that the
   target's death cut off can still be told. */
struct execution { /* 192 bytes */
  u64 key; /* of stmt and pid; 0: free */
  u64 stmt;
  u32 pid;
  u32 tid;
  u32 running;
  u32 flags; /* STATEMENT_* so far */
  u64 conn;
  u64 sql; /* Vdbe.zSql when its text was sent */
  u64 text_id;
  u64 begin_ns;
  u64 end_ns;
  u64 step_ns;
  u64 rows;
  s64 changed;  /* rows changed by its own steps, triggers included */
  u32 base[9];  /* Vdbe.aCounter when the execution began */
  u32 last[9];  /* ... and when the last one ended */
  u64 reserved[3];
};
#define EXECUTION_WINDOW 16 /* a statement lies within so many places from where its key leads */

#endif
