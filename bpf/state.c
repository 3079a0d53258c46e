/*
 * What the probes remember: maps, the structs in them, and how they are reached.
 *
 * Defined by the loader: RING_PAGES, MAX_STATEMENTS, MAX_THREADS; FOLLOW_CHILDREN, FOLLOW_EVERYONE, FOLLOW_FILES (0 or
 * 1); what is left out here: MIN_DURATION_NS, ERRORS_ONLY, MUTING; OWN_PID; and TASK_PID, TASK_TGID, TASK_EXIT_CODE,
 * BPRM_FILE, FILE_INODE, INODE_NUMBER, offsets in the kernel's structs.
 * Scratch memory belongs to a thread, not to a CPU: a uprobe's program can be preempted by another one on its CPU.
 */
#include <uapi/linux/ptrace.h>
#include "records.h"
#include "layout.h"

#define VDBE_BYTES 512
#define VDBE_MAX_READ 384
#define MEMS_PER_READ 64
#define MEM_MAX 72          /* sizeof(Mem) with SQLITE_DEBUG */
#define BLOCK_BYTES (MEMS_PER_READ * MEM_MAX + 128)
#define SHORT_TEXT 2048     /* pieces of this size go through the scratch block */
#define LONG_TEXT 16384     /* longer texts are read straight into the ring */
#define TEXT_PIECES 64      /* long pieces per tail call */
#define FEW_VARS 4
#define MAX_PATH 1024
#define FRAMES 8
#define SQLITE_ROW 100
#define SQLITE_DONE 101

/*
 * Waking the reader costs more than writing a record.  So statements wake it now and then only (it looks by itself
 * ten times a second), and what cannot wait does always: the kernel's own rule is fooled by records before it.
 */
#define NO_WAKEUP 1
#define FORCE_WAKEUP 2
#define WAKE_EVERY 1024

enum { TAIL_BOUND = 0, TAIL_TEXT = 1 };

/* Per-CPU totals; sqltrace/backends/bcc/program.py has the same list. */
enum {
  COUNT_HITS,      /* executions whose beginning was seen */
  COUNT_ENDS,      /* ... whose end was: the difference runs, or had to make room in `statements` */
  COUNT_FILTERED,  /* ... and which nobody wants */
  COUNT_INSERTED,  /* into `statements` */
  COUNT_DELETED,   /* from it: what is neither deleted nor there had to make room */
  LOST_STATEMENT,
  LOST_TEXT,
  LOST_DATABASE,
  LOST_PROCESS,
  LOST_MAPPING,
  LOST_THREADS,    /* steps: no room for another thread */
  LOST_STATEMENTS, /* steps: no room for another statement */
  LOST_DEPTH,      /* steps: more than FRAMES inside one another */
  COUNTS
};

struct statement_key {
  u64 stmt;
  u64 tgid;
};

struct statement {
  u64 begin_ns, end_ns, step_ns, rows;
  u64 conn, text_id, sql;
  s64 changed;               /* rows changed by its own steps, triggers included */
  u32 base[9], last[9];      /* Vdbe.aCounter when the execution began; when the last one ended */
  u32 running, flags, layout, tid;
};

struct frame { /* a step that has not returned yet */
  u64 sp, stmt, conn, begin_ns;
  u64 total;  /* sqlite3.nTotalChange at its entry */
  s64 nested; /* what steps inside it added to that */
};

struct thread {
  u32 depth, wake; /* wake: the record in `out` shall wake the reader */
  struct frame frames[FRAMES];
  struct record_statement out;
  /* of a bound-parameter walk in progress */
  u64 mems, sum;
  u32 left, mem_layout;
  /* of a text in progress */
  u64 text, text_offset, text_id, text_stmt, text_conn;
  u8 vdbe[VDBE_BYTES + 8];
  u8 block[BLOCK_BYTES];
};

struct follow {
  u32 parent;
  u32 unannounced; /* its PROCESS_FORK has still to be sent, from its own context */
};

BPF_RINGBUF_OUTPUT(records, RING_PAGES);
BPF_ARRAY(layouts, struct layout, 256);
BPF_HASH(followed, u32, struct follow, 16384);
BPF_TABLE("lru_hash", struct statement_key, struct statement, statements, MAX_STATEMENTS);
BPF_F_TABLE("hash", u64, struct thread, threads, MAX_THREADS, BPF_F_NO_PREALLOC);
BPF_ARRAY(blank, struct thread, 1);
BPF_PERCPU_ARRAY(counts, u64, COUNTS);
BPF_TABLE("lru_hash", u64, u8, muted, 65536); /* text_ids of which no execution is wanted */
BPF_ARRAY(next_text_id, u64, 1);
BPF_PROG_ARRAY(tails, 2);

static __always_inline u64 count(int what)
{
  u64 *n = counts.lookup(&what);
  return n ? __sync_fetch_and_add(n, 1) : 0;
}

static __always_inline u64 read_u64(u64 address)
{
  u64 value = 0;
  bpf_probe_read_user(&value, sizeof(value), (void *)address);
  return value;
}

static __always_inline u64 read_word(u64 address, u16 size)
{
  u64 value = 0;
  if (size == 8)
    bpf_probe_read_user(&value, 8, (void *)address);
  else
    bpf_probe_read_user(&value, 4, (void *)address);
  return value;
}

/* Vdbe members out of the copy in a thread's scratch. */
static __always_inline u64 vdbe_u64(struct thread *t, u16 offset) { return *(u64 *)(t->vdbe + (offset & (VDBE_BYTES - 1))); }
static __always_inline u32 vdbe_u32(struct thread *t, u16 offset) { return *(u32 *)(t->vdbe + (offset & (VDBE_BYTES - 1))); }
static __always_inline u8 vdbe_u8(struct thread *t, u16 offset) { return *(t->vdbe + (offset & (VDBE_BYTES - 1))); }

static __always_inline int read_vdbe(struct thread *t, struct layout *l, u64 stmt)
{
  u32 n = l->vdbe_read;
  if (n > VDBE_MAX_READ)
    n = VDBE_MAX_READ;
  return bpf_probe_read_user(t->vdbe, n, (void *)stmt);
}

static __always_inline void copy_counters(u32 *to, struct thread *t, struct layout *l)
{
  u64 at = l->Vdbe_aCounter;
  if (at <= VDBE_MAX_READ) /* also not UNKNOWN */
    bpf_probe_read_kernel(to, 9 * sizeof(u32), t->vdbe + at);
}

/*
 * Whether SQLite itself says that the statement is between its first step and its end.  `copied`: the thread's copy of
 * the struct is of now.
 */
static __always_inline int sqlite_says_running(struct thread *t, struct layout *l, u64 stmt, int copied, int otherwise)
{
  if (l->Vdbe_eVdbeState != UNKNOWN) {
    u8 state = 0;
    if (copied)
      state = vdbe_u8(t, l->Vdbe_eVdbeState);
    else
      bpf_probe_read_user(&state, 1, (void *)(stmt + l->Vdbe_eVdbeState));
    return state == VDBE_STATE_RUN;
  }
  if (l->Vdbe_magic != UNKNOWN && l->Vdbe_pc != UNKNOWN) {
    u32 magic = 0, pc = 0;
    bpf_probe_read_user(&magic, 4, (void *)(stmt + l->Vdbe_magic));
    bpf_probe_read_user(&pc, 4, (void *)(stmt + l->Vdbe_pc));
    return magic == VDBE_MAGIC_RUN && (s32)pc >= 0;
  }
  return otherwise;
}

/*
 * Whether the innermost step under way on this thread is a step of this very statement.  sqlite3_step resets a
 * statement by itself, after DONE or an error and when the schema has changed: that ends no execution.
 */
static __always_inline int steps_itself(u64 stmt, u64 sp)
{
  u64 id = bpf_get_current_pid_tgid();
  struct thread *t = threads.lookup(&id);
  if (!t || t->depth == 0)
    return 0;
  u32 top = t->depth - 1;
  asm volatile("" : "+r"(top));
  top &= FRAMES - 1;
  return t->frames[top].stmt == stmt && t->frames[top].sp > sp;
}

static __always_inline void tell_process(u32 tgid, u32 parent, u32 action, int exit_code)
{
  struct record_process r = {};
  u64 ids = bpf_get_current_uid_gid();
  r.header.type = RECORD_PROCESS;
  r.header.size = sizeof(r);
  r.pid = tgid;
  r.parent = parent;
  r.time_ns = bpf_ktime_get_ns();
  r.cgroup_id = bpf_get_current_cgroup_id();
  r.uid = ids;
  r.gid = ids >> 32;
  r.action = action;
  r.exit_code = exit_code;
  bpf_get_current_comm(r.comm, sizeof(r.comm));
  if (records.ringbuf_output(&r, sizeof(r), FORCE_WAKEUP))
    count(LOST_PROCESS);
}

static __always_inline void announce(struct follow *f, u32 tgid)
{
  if (!f->unannounced)
    return;
  f->unannounced = 0;
  tell_process(tgid, f->parent, PROCESS_FORK, -1);
}

/* NULL when the current process is not observed. */
static __always_inline struct follow *current_follow(void)
{
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct follow *f = followed.lookup(&tgid);
  if (!f && FOLLOW_EVERYONE && tgid != OWN_PID) { /* it shows itself by its first hit */
    struct follow met = {.unannounced = 1};
    followed.update(&tgid, &met);
    f = followed.lookup(&tgid);
  }
  if (f)
    announce(f, tgid);
  return f;
}

static __always_inline struct thread *current_thread(void)
{
  u64 id = bpf_get_current_pid_tgid();
  struct thread *t = threads.lookup(&id);
  if (t)
    return t;
  int zero = 0;
  struct thread *empty = blank.lookup(&zero);
  if (!empty)
    return 0;
  threads.update(&id, empty);
  t = threads.lookup(&id);
  if (!t)
    count(LOST_THREADS);
  return t;
}

static __always_inline struct layout *probe_layout(struct pt_regs *ctx, u32 *index)
{
  int i = bpf_get_attach_cookie(ctx);
  *index = i;
  return layouts.lookup(&i);
}
