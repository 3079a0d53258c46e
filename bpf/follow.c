/*
 * Following processes: fork, exec, exit, and libraries that arrive later.
 */
#define SIGSTOP 19
#define SPINS 2000  /* looks at a hold per tail call; 33 of these are allowed */
#define DAWDLE 4096 /* bytes copied between two looks, only to pass the time: 33 x 2000 x 0.5 us */

/* What became of a thread that waits for us; sqltrace/backends/bcc/holder.py has the same list. */
enum { HOLD_WAITING, HOLD_TAKEN };

struct hold {
  u64 since;
  u32 state, tgid;
};

struct dawdle {
  u8 from[DAWDLE], to[DAWDLE];
};

/* How holds are made here: set when the holder is there. */
struct hold_options {
  u64 patience_ns; /* how long to wait for the holder; 0: do not, stop the process by a signal */
  u32 cpu;         /* where the holder runs */
  u32 pad;
};

BPF_HASH(held, u32, struct hold, 4096); /* by thread; once made, only the holder changes it */
BPF_HASH(stopped, u32, u32, 4096);      /* threads whose process we stopped by a signal -> tgid; the holder reads it */
BPF_HASH(chosen, u64, u8, 64); /* inode numbers of files whose processes are followed */
BPF_RINGBUF_OUTPUT(holds, 1);           /* wakes the holder; it reads `held` */
BPF_ARRAY(hold_options, struct hold_options, 1);
BPF_ARRAY(dawdles, struct dawdle, 1);
BPF_PROG_ARRAY(exec_tails, 1);
BPF_PROG_ARRAY(loader_tails, 1);

/* Whether the current thread waits for the holder.  Looked up anew each time: an update makes a new element. */
static __always_inline struct hold *waiting(void)
{
  u32 tid = bpf_get_current_pid_tgid();
  struct hold *h = held.lookup(&tid);
  return h && *(volatile u32 *)&h->state == HOLD_WAITING ? h : 0;
}

/*
 * BPF's last resort; seen by the parent: a shell takes the terminal back.  The holder first ends the wait and then looks
 * at `stopped`, we the other way round, so that one of us sees what the other did.
 */
static __always_inline void stop_by_signal(void)
{
  u32 tid = bpf_get_current_pid_tgid(), tgid = bpf_get_current_pid_tgid() >> 32;
  stopped.update(&tid, &tgid);
  if (waiting())
    bpf_send_signal(SIGSTOP);
  else
    stopped.delete(&tid);
}

/* Says that the process has mapped code.  Returns 0 when user space will hear of it. */
static __always_inline int tell_mapping(u32 tgid, u32 tid, u64 now)
{
  struct record_mapping r = {};
  r.header.type = RECORD_MAPPING;
  r.header.size = sizeof(r);
  r.pid = tgid;
  r.tid = tid;
  r.time_ns = now;
  if (!records.ringbuf_output(&r, sizeof(r), FORCE_WAKEUP))
    return 0;
  count(LOST_MAPPING);
  return 1;
}

/*
 * Asks for the current thread to be held until user space has looked at what it mapped.  Returns 1 when it must wait
 * for the holder here.
 *
 * The holder is a process of real-time priority that is bound to one CPU.  On that CPU it is woken by us and runs
 * before the current thread can return to user mode.  On any other it runs at the same time, and we must wait for it.
 */
static __always_inline int ask_for_hold(u32 tgid)
{
  u64 now = bpf_ktime_get_ns();
  struct hold h = {.since = now, .state = HOLD_WAITING, .tgid = tgid};
  u32 tid = bpf_get_current_pid_tgid();
  int zero = 0;
  struct hold_options *o = hold_options.lookup(&zero);
  if (!o)
    return 0;
  held.update(&tid, &h);
  if (tell_mapping(tgid, tid, now)) {
    held.delete(&tid); /* nobody would wake it: let it run */
    return 0;
  }
  if (o->patience_ns)
    holds.ringbuf_output(&now, sizeof(now), FORCE_WAKEUP);
  return !o->patience_ns || o->cpu != bpf_get_smp_processor_id();
}

/* Passes the time until the holder has come.  Returns 1 when it has not, and there is time left. */
static __always_inline int still_waiting(void)
{
  int zero = 0;
  struct dawdle *d = dawdles.lookup(&zero);
  struct hold_options *o = hold_options.lookup(&zero);
  if (!d || !o)
    return 0;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < SPINS; i++) {
    asm volatile("" : "+r"(i));
    struct hold *h = waiting();
    if (!h)
      return 0;
    if (bpf_ktime_get_ns() - h->since >= o->patience_ns) {
      stop_by_signal();
      return 0;
    }
    bpf_probe_read_kernel(d->to, DAWDLE, d->from);
  }
  return 1;
}

/* After the last tail call that the kernel allows. */
static __always_inline void give_up(void)
{
  if (waiting())
    stop_by_signal();
}

int loader_waits(struct pt_regs *ctx)
{
  if (still_waiting()) {
    loader_tails.call(ctx, 0);
    give_up();
  }
  return 0;
}

int exec_waits(struct bpf_raw_tracepoint_args *ctx)
{
  if (still_waiting()) {
    exec_tails.call(ctx, 0);
    give_up();
  }
  return 0;
}

/* The dynamic loader's debug hook: it calls this empty function whenever its list of libraries has changed. */
int loader_entry(struct pt_regs *ctx)
{
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  if (FOLLOW_EVERYONE) {
    /* Never held: a tracer that hangs would stop the whole machine. */
    if (tgid != OWN_PID)
      tell_mapping(tgid, 0, bpf_ktime_get_ns());
    return 0;
  }
  if (current_follow() && ask_for_hold(tgid)) {
    loader_tails.call(ctx, 0);
    give_up();
  }
  return 0;
}

/* args: parent, child (struct task_struct *); runs in the parent */
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
  u32 parent = bpf_get_current_pid_tgid() >> 32, pid = 0, tgid = 0;
  if (!(FOLLOW_CHILDREN || FOLLOW_FILES) || FOLLOW_EVERYONE || !followed.lookup(&parent))
    return 0;
  bpf_probe_read_kernel(&pid, sizeof(pid), (void *)(ctx->args[1] + TASK_PID));
  bpf_probe_read_kernel(&tgid, sizeof(tgid), (void *)(ctx->args[1] + TASK_TGID));
  if (pid != tgid)
    return 0; /* a thread */
  struct follow f = {.parent = parent, .unannounced = 1};
  followed.update(&tgid, &f);
  return 0;
}

/* Whether a file that was executed may be one of those that are chosen: user space compares more than the number. */
static __always_inline int may_be_chosen(u64 bprm)
{
  u64 at = 0, number = 0;
  bpf_probe_read_kernel(&at, sizeof(at), (void *)(bprm + BPRM_FILE));
  bpf_probe_read_kernel(&at, sizeof(at), (void *)(at + FILE_INODE));
  bpf_probe_read_kernel(&number, sizeof(number), (void *)(at + INODE_NUMBER));
  return chosen.lookup(&number) != 0;
}

/* args: task, its old pid, struct linux_binprm * */
RAW_TRACEPOINT_PROBE(sched_process_exec)
{
  u64 id = bpf_get_current_pid_tgid();
  u32 tgid = id >> 32;
  struct follow *f = followed.lookup(&tgid);
  if (f) {
    announce(f, tgid);
    threads.delete(&id); /* its frames are on a stack that is gone */
    tell_process(tgid, 0, PROCESS_EXEC, -1);
  }
  if (FOLLOW_EVERYONE) {
    tell_mapping(tgid, 0, bpf_ktime_get_ns());
    return 0;
  }
  if (!f && !(FOLLOW_FILES && may_be_chosen(ctx->args[2])))
    return 0;
  if (ask_for_hold(tgid)) {
    exec_tails.call(ctx, 0);
    give_up();
  }
  return 0;
}

/* args: task */
RAW_TRACEPOINT_PROBE(sched_process_exit)
{
  u64 id = bpf_get_current_pid_tgid();
  u32 tgid = id >> 32, tid = id;
  int code = -1;
  if (!followed.lookup(&tgid))
    return 0;
  threads.delete(&id);
  held.delete(&tid);
  stopped.delete(&tid);
  if (tid != tgid)
    return 0;
  current_follow();
  bpf_probe_read_kernel(&code, sizeof(code), (void *)(ctx->args[0] + TASK_EXIT_CODE));
  tell_process(tgid, 0, PROCESS_EXIT, code);
  return 0;
}
