/*
 * The Frida backend's hooks: replacements for sqlite3_step, sqlite3_reset and sqlite3_finalize, which read what they
 * report before or after they call the original.  They follow bpf/probes.c in everything that can be observed.
 *
 * Compiled inside the target by Frida's CModule, that is by TinyCC without an optimiser: no writable globals, no
 * thread-local variables, no atomics of C11; state is reached through symbols that the agent provides.
 * One instance per file with SQLite (`module`), one ring and one set of private pages for all.
 *
 * Everything here runs on the application's threads and stacks: no allocation, no lock, no call into SQLite.
 */
#include <glib.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#include "records.h"
#include "layout.h"
#include "ring.h"

#define SQLITE_ROW 100
#define SQLITE_DONE 101
#define CLOCK 1 /* CLOCK_MONOTONIC */
#define MAX_PATH 4096
#define NOWHERE (~0ULL)
#define PATIENCE 1000000000ULL /* ns without a sign of life from the reader */
#define NAP 200000             /* ns between looks at a full ring */
#define THREADS 512
#define THREAD_WINDOW 16
#define TCB_BYTES 2304 /* glibc's struct pthread */

/* Mem.flags of a number, as far as layout.h has no name for it: MEM_IntReal, an integer stored for a REAL column. */
#define MEM_IntReal 0x0020

struct module {
  struct layout layout;
  int (*step)(u64);
  int (*reset)(u64);
  int (*finalize)(u64);
};

struct thread { /* the innermost step of a thread that is inside one */
  u64 tcb;
  u64 sp; /* 0: in none */
  u64 stmt;
  u64 conn;
  s64 nested; /* what steps inside it added to nTotalChange */
};

/*
 * CLOCK_MONOTONIC reckoned from the processor's time-stamp counter, which is read in a third of the time: the real clock
 * is asked once in SPAN ticks, and each time tells how far the reckoning was off and how long a tick is.
 */
struct clock {
  u64 version; /* odd while it is written */
  u64 tsc;     /* at this count ... */
  u64 ns;      /* ... it was this time */
  u64 tick;    /* length of a tick, ns in 32.32 bits; 0: not known yet */
  u64 last;    /* count when the clock was last asked */
  u64 since_tsc, since_ns; /* the tick is measured from here */
  u64 wrong;   /* how often the reckoning was off; beyond WRONG it is given up */
};
#define SPAN (1ULL << 22)      /* ticks: 1 to 4 ms */
#define PROMPT 4096            /* ticks in which the clock answers, unless we were interrupted */
#define INTERRUPTED (1ULL << 28) /* ticks without a look at the clock: what was measured before may include a suspend */
#define SHORTEST (1ULL << 24)  /* ticks over which one is measured */
#define LONGEST (1ULL << 30)
#define OFF 2000               /* ns */
#define WRONG 3

/* Private to a process: a forked child finds these pages zeroed (MADV_WIPEONFORK). */
struct private {
  u64 pid;
  u64 line[7];
  struct thread threads[THREADS];
  struct clock clock;
};

struct constants {
  u64 tid_offset; /* of the thread's id in its control block; 0: not known */
  u64 tsc;        /* the kernel keeps time by the time-stamp counter */
};

struct timespec {
  long tv_sec, tv_nsec;
};

extern struct module module;
extern struct ring_header ring;
extern struct private private;
extern struct constants constants;
extern int clock_gettime(int, struct timespec *);
#ifndef __x86_64__
extern int getpid(void);
extern int gettid(void);
extern int nanosleep(struct timespec *, struct timespec *);
extern void *pthread_self(void);
#endif

/* ---- what C11 would give ---- */

/* Operands go through pointers: TinyCC cannot address an extern symbol in an asm operand. */
#ifdef __x86_64__
static u64 fetch_add(u64 *p, u64 n)
{
  __asm__ __volatile__("lock; xaddq %0, (%1)" : "+r"(n) : "r"(p) : "memory");
  return n;
}

static int swap_if(u64 *p, u64 from, u64 to)
{
  u64 was;
  __asm__ __volatile__("lock; cmpxchgq %2, (%1)" : "=a"(was) : "r"(p), "r"(to), "0"(from) : "memory");
  return was == from;
}

/* x86 keeps stores in order, and TinyCC moves none. */
static void store_last(u64 *p, u64 n) { *(volatile u64 *)p = n; }

static u64 ticks(void)
{
  u64 low, high;
  __asm__ __volatile__("rdtsc" : "=a"(low), "=d"(high));
  return high << 32 | (low & 0xffffffff);
}

static u64 syscall0(u64 number)
{
  u64 result;
  __asm__ __volatile__("syscall" : "=a"(result) : "0"(number) : "rcx", "r11", "memory");
  return result;
}

/* Not libc's, which would change errno. */
static void nap(struct timespec *t)
{
  u64 result;
  __asm__ __volatile__("syscall" : "=a"(result) : "0"(35), "D"(t), "S"(0) : "rcx", "r11", "memory");
}

static u32 ask_pid(void) { return (u32)syscall0(39); }
static u32 ask_tid(void) { return (u32)syscall0(186); }

static u64 control_block(void)
{
  u64 tcb;
  __asm__ __volatile__("movq %%fs:0, %0" : "=r"(tcb));
  return tcb;
}
#else
static u64 fetch_add(u64 *p, u64 n) { return (u64)g_atomic_pointer_add(p, (gssize)n); }
static int swap_if(u64 *p, u64 from, u64 to) { return g_atomic_pointer_compare_and_exchange(p, (gpointer)from, (gpointer)to); }
static void store_last(u64 *p, u64 n) { g_atomic_pointer_set(p, (gpointer)n); }
static void nap(struct timespec *t) { nanosleep(t, 0); }
static u32 ask_pid(void) { return (u32)getpid(); }
static u32 ask_tid(void) { return (u32)gettid(); }
static u64 control_block(void) { return (u64)pthread_self(); }
#endif

static u64 clock_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK, &t);
  return (u64)t.tv_sec * 1000000000ULL + (u64)t.tv_nsec;
}

#ifdef __x86_64__
/* Asks the clock, at count `t`, and sets the reckoning right. */
static u64 clock_asked(u64 t)
{
  struct private *p = &private;
  struct clock *c = &p->clock;
  u64 ns = clock_now(), end = ticks(), at = t + (end - t) / 2, passed, measured, version = c->version;
  if (end - t > PROMPT || version & 1 || !swap_if(&c->version, version, version + 1))
    return ns;
  passed = at - c->last;
  if (c->tick && at - c->tsc < 2 * SPAN) {
    s64 off = (s64)(c->ns + ((at - c->tsc) * c->tick >> 32) - ns);
    if (off > OFF || off < -OFF)
      c->wrong++;
  }
  measured = at - c->since_tsc;
  if (passed < INTERRUPTED && measured >= SHORTEST)
    c->tick = ((ns - c->since_ns) << 32) / measured;
  if (passed >= INTERRUPTED || measured > LONGEST) {
    c->since_tsc = at;
    c->since_ns = ns;
  }
  c->last = at;
  if (c->tick) {
    c->tsc = at;
    c->ns = ns;
  }
  store_last(&c->version, version + 2);
  return ns;
}

static u64 now(void)
{
  struct private *p = &private;
  struct clock *c = &p->clock;
  u64 t, passed, ns, version;
  if (!constants.tsc || c->wrong > WRONG)
    return clock_now();
  t = ticks();
  version = *(volatile u64 *)&c->version;
  passed = t - *(volatile u64 *)&c->tsc;
  if (passed < SPAN) {
    ns = *(volatile u64 *)&c->ns + (passed * *(volatile u64 *)&c->tick >> 32);
    if (!(version & 1) && *(volatile u64 *)&c->version == version)
      return ns;
  }
  return clock_asked(t);
}
#else
static u64 now(void) { return clock_now(); }
#endif

static u64 hash(u64 key, u32 size) { return ((key * 0x9e3779b97f4a7c15ULL) >> 32) & (size - 1); }

/* ---- who we are ---- */

/* Called by the agent on one of its own threads: where glibc keeps a thread's id, 0 when it is not found. */
u64 find_tid_offset(void)
{
#ifdef __x86_64__
  u64 tcb = control_block(), at;
  u32 tid = ask_tid();
  for (at = 64; at < TCB_BYTES; at += 4)
    if (*(u32 *)(tcb + at) == tid)
      return at;
#endif
  return 0;
}

static u32 current_pid(void)
{
  struct private *p = &private;
  if (!p->pid)
    p->pid = ask_pid();
  return (u32)p->pid;
}

static u32 current_tid(void)
{
  u64 offset = constants.tid_offset;
  return offset ? *(u32 *)(control_block() + offset) : ask_tid();
}

/* The place of this thread, NULL when there is none left. */
static struct thread *current_thread(void)
{
  struct private *p = &private;
  struct ring_header *h = &ring;
  struct thread *t;
  u64 tcb = control_block(), at = hash(tcb, THREADS);
  u32 i;
  for (i = 0; i < THREAD_WINDOW; i++) {
    t = &p->threads[(at + i) & (THREADS - 1)];
    if (t->tcb == tcb)
      return t;
  }
  for (i = 0; i < THREAD_WINDOW; i++) {
    t = &p->threads[(at + i) & (THREADS - 1)];
    u64 was = t->tcb;
    /* A thread that is in no step needs its place no more; it may be gone. */
    if (!t->sp && swap_if(&t->tcb, was, tcb))
      return t;
  }
  fetch_add(&h->lost[LOST_THREAD], 1);
  return 0;
}

/* ---- the ring ---- */

/* Waits until there is room; 0 when nobody reads, or shall not be waited for. */
static int wait_for_room(u64 slots)
{
  struct ring_header *h = &ring;
  struct timespec t;
  u64 beat = *(volatile u64 *)&h->beat, since = now();
  while (h->waits && !h->closed && beat != h->silent) {
    t.tv_sec = 0;
    t.tv_nsec = NAP;
    nap(&t);
    if (*(volatile u64 *)&h->head - *(volatile u64 *)&h->tail + slots <= h->slots)
      return 1;
    if (*(volatile u64 *)&h->beat != beat) {
      beat = *(volatile u64 *)&h->beat;
      since = now();
    } else if (now() - since > PATIENCE) {
      h->silent = beat;
    }
  }
  return 0;
}

/* Reserves room for a record; NOWHERE when there is none.  Check and reservation are one step, so that no number of
   threads can overrun the reader. */
static u64 reserve(u32 size, u32 loss)
{
  struct ring_header *h = &ring;
  u64 slots = (size + RING_SLOT - 1) / RING_SLOT;
  for (;;) {
    u64 head = *(volatile u64 *)&h->head, used = head - *(volatile u64 *)&h->tail;
    if (used + slots > h->slots) {
      if (wait_for_room(slots))
        continue;
      fetch_add(&h->lost[loss], 1);
      return NOWHERE;
    }
    if (swap_if(&h->head, head, head + slots))
      return head;
  }
}

static u8 *place(u64 position)
{
  struct ring_header *h = &ring;
  return (u8 *)h + RING_HEADER + 8ULL * h->slots + (position & (h->slots - 1)) * RING_SLOT;
}

static void publish(u64 position)
{
  struct ring_header *h = &ring;
  u64 *seq = (u64 *)((u8 *)h + RING_HEADER);
  store_last(&seq[position & (h->slots - 1)], position + 1);
}

/* ---- the table of executions ---- */

static struct execution *table(void)
{
  struct ring_header *h = &ring;
  return (struct execution *)((u8 *)h + RING_HEADER + (8ULL + RING_SLOT) * h->slots + RING_SPILL);
}

/* User addresses have 47 bits, and SQLite's are multiples of 8: the rest has room for a pid. */
static u64 key_of(u64 stmt, u32 pid) { return (stmt >> 3) ^ ((u64)pid << 44); }

static struct execution *find(u64 stmt)
{
  struct ring_header *h = &ring;
  struct execution *all = table();
  u64 key = key_of(stmt, current_pid()), at = hash(key, h->executions);
  u32 i;
  for (i = 0; i < EXECUTION_WINDOW; i++) {
    struct execution *e = &all[(at + i) & (h->executions - 1)];
    if (e->key == key)
      return e;
  }
  return 0;
}

/* A place for a statement that has none: a free one, else that of a statement that is not being executed. */
static struct execution *claim(u64 stmt)
{
  struct ring_header *h = &ring;
  struct execution *all = table();
  u32 pid = current_pid(), i, pass;
  u64 key = key_of(stmt, pid), at = hash(key, h->executions);
  for (pass = 0; pass < 2; pass++)
    for (i = 0; i < EXECUTION_WINDOW; i++) {
      struct execution *e = &all[(at + i) & (h->executions - 1)];
      u64 was = e->key;
      if ((pass ? e->running : was != 0) || !swap_if(&e->key, was, key))
        continue;
      memset((u8 *)e + sizeof(u64), 0, sizeof(*e) - sizeof(u64));
      e->stmt = stmt;
      e->pid = pid;
      return e;
    }
  fetch_add(&h->lost[LOST_EXECUTION], 1);
  return 0;
}

/* ---- SQLite's structs ---- */

static u64 u64_at(u64 p, u16 offset) { return *(u64 *)(p + offset); }
static u32 u32_at(u64 p, u16 offset) { return *(u32 *)(p + offset); }
static u64 word_at(u64 p, u16 offset, u16 size) { return size == 8 ? u64_at(p, offset) : (u64)(s64)(s32)u32_at(p, offset); }

/* Whether SQLite itself says that the statement is between its first step and its end. */
static int sqlite_says_running(u64 stmt, int otherwise)
{
  struct layout *l = &module.layout;
  if (l->Vdbe_eVdbeState != UNKNOWN)
    return *(u8 *)(stmt + l->Vdbe_eVdbeState) == VDBE_STATE_RUN;
  if (l->Vdbe_magic != UNKNOWN && l->Vdbe_pc != UNKNOWN)
    return u32_at(stmt, l->Vdbe_magic) == VDBE_MAGIC_RUN && (s32)u32_at(stmt, l->Vdbe_pc) >= 0;
  return otherwise;
}

static u64 connection_of(u64 stmt) { return u64_at(stmt, module.layout.Vdbe_db); }

static u64 total_changes(u64 conn)
{
  struct layout *l = &module.layout;
  return l->sqlite3_nTotalChange == UNKNOWN ? 0 : word_at(conn, l->sqlite3_nTotalChange, l->sqlite3_nChange_size);
}

static void copy_counters(u32 *to, u64 stmt)
{
  struct layout *l = &module.layout;
  u32 n = l->counters > 9 ? 9 : l->counters;
  if (l->Vdbe_aCounter != UNKNOWN)
    memcpy(to, (void *)(stmt + l->Vdbe_aCounter), n * sizeof(u32));
}

static char *main_database(u64 conn)
{
  struct layout *l = &module.layout;
  u64 p;
  if (l->sqlite3_aDb == UNKNOWN || l->Db_pBt == UNKNOWN || l->Btree_pBt == UNKNOWN || l->BtShared_pPager == UNKNOWN ||
      l->Pager_zFilename == UNKNOWN)
    return 0;
  p = u64_at(conn, l->sqlite3_aDb);
  p = p ? u64_at(p, l->Db_pBt) : 0;
  p = p ? u64_at(p, l->Btree_pBt) : 0;
  p = p ? u64_at(p, l->BtShared_pPager) : 0;
  return p ? (char *)u64_at(p, l->Pager_zFilename) : 0;
}

/* Text and blob lengths, 8 for each number, over all bound parameters. */
static u64 bound_bytes(u64 mems, u32 vars)
{
  struct layout *l = &module.layout;
  u64 sum = 0;
  u32 i;
  if (!mems || l->Mem_n == UNKNOWN || l->Mem_flags == UNKNOWN || l->sizeof_Mem == UNKNOWN)
    return 0;
  for (i = 0; i < vars; i++, mems += l->sizeof_Mem) {
    u16 flags = *(u16 *)(mems + l->Mem_flags);
    if (flags & (MEM_Str | MEM_Blob)) {
      sum += u32_at(mems, l->Mem_n);
      if (l->Mem_u != UNKNOWN && flags & l->MEM_Zero)
        sum += u32_at(mems, l->Mem_u);
    } else if (flags & (MEM_Int | MEM_Real | MEM_IntReal)) {
      sum += 8;
    }
  }
  return sum;
}

/* ---- the text ---- */

/* Returns whether it arrived. */
static int send_database(u64 conn, u64 text_id)
{
  char *path = main_database(conn);
  u64 length = path ? strlen(path) : 0;
  struct record_database *r;
  u64 position;
  if (length > MAX_PATH)
    length = MAX_PATH;
  position = reserve(sizeof(*r) + length, LOST_DATABASE);
  if (position == NOWHERE)
    return 0;
  r = (struct record_database *)place(position);
  r->header.type = RECORD_DATABASE;
  r->header.flags = 0;
  r->header.size = sizeof(*r) + length;
  r->pid = current_pid();
  r->tid = current_tid();
  r->text_id = text_id;
  r->conn = conn;
  r->length = length;
  r->reserved = 0;
  memcpy(r + 1, path, length);
  publish(position);
  return 1;
}

/* Returns the text's id, 0 when a part of it got lost. */
static u64 send_text(u64 stmt, u64 conn, char *sql)
{
  struct ring_header *h = &ring;
  u64 text_id = fetch_add(&h->text_id, 1) + 1, length = sql ? strlen(sql) : 0, offset = 0;
  u64 most = (u64)h->slots * RING_SLOT / 4; /* what is longer could never arrive whole */
  u32 cut = 0;
  if (!send_database(conn, text_id))
    return 0;
  if (length > most) {
    length = most;
    cut = TEXT_TRUNCATED;
  }
  do {
    u64 piece = length - offset > RING_PIECE ? RING_PIECE : length - offset;
    struct record_text *r;
    u64 position = reserve((sizeof(*r) + piece + 7) & ~7ULL, LOST_TEXT);
    if (position == NOWHERE)
      return 0;
    r = (struct record_text *)place(position);
    r->header.type = RECORD_TEXT;
    r->header.flags = (sql ? 0 : TEXT_NULL) | (offset + piece == length ? TEXT_LAST | cut : 0);
    r->header.size = (sizeof(*r) + piece + 7) & ~7ULL;
    r->pid = current_pid();
    r->tid = current_tid();
    r->text_id = text_id;
    r->stmt = stmt;
    r->conn = conn;
    r->offset = offset;
    r->length = piece;
    r->reserved = 0;
    memcpy(r + 1, sql + offset, piece);
    publish(position);
    offset += piece;
  } while (offset < length);
  return text_id;
}

/* ---- an execution ---- */

static u32 share(struct execution *e, u32 *counters, u32 index)
{
  return counters[index] >= e->base[index] ? counters[index] - e->base[index] : counters[index];
}

/*
 * What the end of the statement itself tells.
 * `conn` is not taken from the table: shared memory becomes zero at any moment when the tracer leaves, so no pointer
 * in it may be followed.
 */
static void describe_end(struct record_statement *r, struct execution *e, u64 stmt, u64 conn, u32 end)
{
  struct layout *l = &module.layout;
  u32 counters[9], vars = 0;
  memset(counters, 0, sizeof(counters));
  copy_counters(counters, stmt);
  r->counters[COUNTER_FULLSCAN_STEP] = share(e, counters, 1);
  r->counters[COUNTER_SORT] = share(e, counters, 2);
  r->counters[COUNTER_AUTOINDEX] = share(e, counters, 3);
  r->counters[COUNTER_VM_STEP] = share(e, counters, 4);
  r->counters[COUNTER_REPREPARE] = share(e, counters, 5);
  r->counters[COUNTER_FILTER_MISS] = share(e, counters, 7);
  r->counters[COUNTER_FILTER_HIT] = share(e, counters, 8);
  memcpy(e->last, counters, sizeof(counters));
  if (l->sqlite3_autoCommit != UNKNOWN && *(u8 *)(conn + l->sqlite3_autoCommit))
    r->header.flags |= STATEMENT_AUTOCOMMIT;
  if (end == END_ERROR && l->sqlite3_errCode != UNKNOWN) {
    u32 code = u32_at(conn, l->sqlite3_errCode);
    if ((code & 0xff) == ((u32)r->rc & 0xff))
      r->rc = (s32)code;
  }
  if (end == END_DONE || end == END_ERROR) {
    if (e->changed > 0 && l->sqlite3_nChange != UNKNOWN)
      r->changes = (s64)word_at(conn, l->sqlite3_nChange, l->sqlite3_nChange_size);
  } else if (l->Vdbe_nChange != UNKNOWN) {
    r->changes = (s64)word_at(stmt, l->Vdbe_nChange, l->Vdbe_nChange_size);
  }
  if (l->Vdbe_nVar != UNKNOWN)
    vars = l->Vdbe_nVar_size == 2 ? *(u16 *)(stmt + l->Vdbe_nVar) : u32_at(stmt, l->Vdbe_nVar);
  r->vars = vars;
  if (vars && l->Vdbe_aVar != UNKNOWN)
    r->bound_bytes = bound_bytes(u64_at(stmt, l->Vdbe_aVar), vars);
}

static void finish(struct execution *e, u64 stmt, u64 conn, u32 end, s32 rc)
{
  struct ring_header *h = &ring;
  struct record_statement *r;
  u64 position;
  e->running = 0;
  fetch_add(&h->hits, 1);
  position = reserve(sizeof(*r), LOST_STATEMENT);
  if (position == NOWHERE) {
    copy_counters(e->last, stmt);
    return;
  }
  r = (struct record_statement *)place(position);
  memset(r, 0, sizeof(*r));
  r->header.type = RECORD_STATEMENT;
  r->header.flags = (u16)(e->flags | end);
  r->header.size = sizeof(*r);
  r->pid = e->pid;
  r->tid = current_tid();
  r->begin_ns = e->begin_ns;
  r->end_ns = e->end_ns;
  r->step_ns = e->step_ns;
  r->stmt = stmt;
  r->conn = e->conn;
  r->text_id = e->text_id;
  r->rows = e->rows;
  r->rc = rc;
  if (end == END_UNSEEN) /* its address holds another statement by now */
    r->header.flags |= STATEMENT_INCOMPLETE | STATEMENT_NO_COUNTERS;
  else
    describe_end(r, e, stmt, conn, end);
  publish(position);
}

/* Whether the statement may be another one than that whose text was sent. */
static int may_be_new(struct execution *e, u64 sql, u64 conn)
{
  u32 i;
  if (!e->text_id || e->sql != sql || e->conn != conn || module.layout.Vdbe_aCounter == UNKNOWN)
    return 1;
  /* sqlite3_exec destroys statements where no hook looks, and malloc hands out the same addresses again.
     But a new statement has zero counters, and one that ran has vm_steps. */
  for (i = 1; i < 5; i++)
    if (e->base[i] != e->last[i])
      return 1;
  return 0;
}

static void begin(struct execution *e, u64 stmt, u64 conn, u32 flags)
{
  u64 sql = u64_at(stmt, module.layout.Vdbe_zSql);
  copy_counters(e->base, stmt);
  if (may_be_new(e, sql, conn)) {
    e->text_id = 0;
    e->text_id = send_text(stmt, conn, (char *)sql);
  }
  e->sql = sql;
  e->conn = conn;
  e->flags = flags;
  e->step_ns = e->rows = 0;
  e->changed = 0;
  e->begin_ns = 0; /* set when the step begins: sending the text is not its time */
}

/* ---- the replacements ---- */

int hook_step(u64 stmt)
{
  struct ring_header *h = &ring;
  struct execution *e;
  struct thread *t, outer;
  u64 conn, began, ended, sp = (u64)&outer;
  s64 before, added;
  int rc, running, known;
  if (!stmt || h->closed)
    return module.step(stmt);
  conn = connection_of(stmt);
  if (!conn) /* finalized: SQLite answers SQLITE_MISUSE */
    return module.step(stmt);

  t = current_thread();
  memset(&outer, 0, sizeof(outer));
  /* A step that was left by longjmp lies below our frame: the stack grows downwards. */
  if (t && t->sp > sp)
    outer = *t;
  e = find(stmt);
  known = e != 0;
  running = sqlite_says_running(stmt, e ? (int)e->running : 0);
  if (e && e->running && !running)
    finish(e, stmt, 0, END_UNSEEN, SQLITE_ROW);
  if (!e)
    e = claim(stmt);
  if (!e)
    return module.step(stmt);
  if (!e->running)
    /* A known one goes on after BUSY where it stood; an unknown one was under way before we came. */
    begin(e, stmt, conn, (running && !known ? STATEMENT_INCOMPLETE : 0) | (outer.sp ? STATEMENT_NESTED : 0));
  e->tid = current_tid();
  before = (s64)total_changes(conn);
  if (t) {
    t->stmt = stmt;
    t->conn = conn;
    t->nested = 0;
    t->sp = sp;
  }

  began = now();
  if (!e->begin_ns) {
    e->begin_ns = e->end_ns = began;
    e->running = 1;
  }
  rc = module.step(stmt);
  ended = now();
  if (ended < began) /* the reckoning was set right in between */
    ended = began;

  added = (s64)total_changes(conn) - before;
  if (t) {
    s64 nested = t->nested;
    t->sp = outer.sp;
    t->stmt = outer.stmt;
    t->conn = outer.conn;
    t->nested = outer.nested + (outer.sp && outer.conn == conn ? added : 0);
    added -= nested;
  }
  if (h->closed || e->stmt != stmt || !e->running)
    return rc;
  e->end_ns = ended;
  e->step_ns += ended - began;
  e->changed += added;
  if (rc == SQLITE_ROW)
    e->rows++;
  else
    finish(e, stmt, conn, rc == SQLITE_DONE ? END_DONE : END_ERROR, rc);
  return rc;
}

/* Whether the innermost step under way on this thread is a step of this very statement.  sqlite3_step resets a
   statement by itself, after DONE or an error and when the schema has changed: that ends no execution. */
static int steps_itself(u64 stmt)
{
  struct thread *t = current_thread();
  return t && t->sp > (u64)&t && t->stmt == stmt;
}

int hook_reset(u64 stmt)
{
  struct ring_header *h = &ring;
  struct execution *e = stmt && !h->closed ? find(stmt) : 0;
  if (e && e->running && !steps_itself(stmt))
    finish(e, stmt, connection_of(stmt), END_RESET, SQLITE_ROW);
  return module.reset(stmt);
}

int hook_finalize(u64 stmt)
{
  struct ring_header *h = &ring;
  struct execution *e = stmt && !h->closed ? find(stmt) : 0;
  if (e) {
    if (e->running)
      finish(e, stmt, connection_of(stmt), END_FINALIZE, SQLITE_ROW);
    e->key = 0;
  }
  return module.finalize(stmt);
}
