/*
 * Following processes: fork, exec, exit, and libraries that arrive later.
 */
/* Stops the current process until user space has looked at what it mapped. */
static __always_inline void stop_and_tell(u32 tgid)
{
  struct record_mapping r = {};
  u64 now = bpf_ktime_get_ns();
  r.header.type = RECORD_MAPPING;
  r.header.size = sizeof(r);
  r.pid = tgid;
  r.tid = bpf_get_current_pid_tgid();
  r.time_ns = now;
  if (records.ringbuf_output(&r, sizeof(r), 0)) {
    count(LOST_MAPPING); /* nobody would wake it: let it run */
    return;
  }
  stopped.update(&tgid, &now);
  bpf_send_signal(SIGSTOP);
}

/* The dynamic loader's debug hook: it calls this empty function whenever its list of libraries has changed. */
int loader_entry(struct pt_regs *ctx)
{
  if (current_follow())
    stop_and_tell(bpf_get_current_pid_tgid() >> 32);
  return 0;
}

/* args: parent, child (struct task_struct *); runs in the parent */
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
  u32 parent = bpf_get_current_pid_tgid() >> 32, pid = 0, tgid = 0;
  if (!FOLLOW_CHILDREN || !followed.lookup(&parent))
    return 0;
  bpf_probe_read_kernel(&pid, sizeof(pid), (void *)(ctx->args[1] + TASK_PID));
  bpf_probe_read_kernel(&tgid, sizeof(tgid), (void *)(ctx->args[1] + TASK_TGID));
  if (pid != tgid)
    return 0; /* a thread */
  struct follow f = {.parent = parent, .unannounced = 1};
  followed.update(&tgid, &f);
  return 0;
}

RAW_TRACEPOINT_PROBE(sched_process_exec)
{
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  if (!current_follow())
    return 0;
  u64 id = bpf_get_current_pid_tgid();
  threads.delete(&id); /* its frames are on a stack that is gone */
  tell_process(tgid, 0, PROCESS_EXEC, -1);
  stop_and_tell(tgid);
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
  if (tid != tgid)
    return 0;
  current_follow();
  bpf_probe_read_kernel(&code, sizeof(code), (void *)(ctx->args[0] + TASK_EXIT_CODE));
  tell_process(tgid, 0, PROCESS_EXIT, code);
  stopped.delete(&tgid);
  return 0;
}
