/*
 * The bcc backend's hooks: uprobes on sqlite3_step, sqlite3_reset and sqlite3_finalize, which write the records of
 * records.h into one ring.
 *
 * One compiled object serves every binary: a probe's attach cookie names its `struct layout` in a map.
 * bcc understands a map's methods only in the file that it is given, so state.c, text.c, finish.c, follow.c and this
 * file are handed to it as one, in that order.
 */
/*
 * How many steps are under way on this thread in frames above `sp`.  Frames are told apart by stack pointer: a missed
 * return (attach, longjmp) cannot skew the depth.
 */
static __always_inline u32 live_depth(struct thread *t, u64 sp)
{
  u32 depth = t->depth;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < FRAMES; i++) {
    asm volatile("" : "+r"(i));
    if (depth == 0)
      break;
    u32 top = depth - 1;
    asm volatile("" : "+r"(top));
    top &= FRAMES - 1;
    if (t->frames[top].sp > sp)
      break;
    depth--;
  }
  return depth;
}

int step_entry(struct pt_regs *ctx)
{
  u64 stmt = PT_REGS_PARM1(ctx), sp = PT_REGS_SP(ctx), now;
  u32 index;
  if (!stmt || !current_follow())
    return 0;
  struct layout *l = probe_layout(ctx, &index);
  struct thread *t = current_thread();
  if (!l || !t)
    return 0;

  u32 depth = live_depth(t, sp);
  if (depth >= FRAMES) {
    count(LOST_DEPTH);
    return 0;
  }

  struct statement_key key = {.stmt = stmt, .tgid = bpf_get_current_pid_tgid() >> 32};
  struct statement *s = statements.lookup(&key);
  int more = 0, known = s != 0, fresh = !s || !s->running;
  if (fresh && read_vdbe(t, l, stmt))
    return 0;
  int running = sqlite_says_running(t, l, stmt, fresh, s ? s->running : 0);
  if (!fresh && !running) {
    finish_unseen(t, s, stmt);
    fresh = 1;
    if (read_vdbe(t, l, stmt))
      return 0;
  }
  if (fresh) {
    if (!s) {
      struct statement empty = {};
      statements.update(&key, &empty);
      s = statements.lookup(&key);
      if (!s) {
        count(LOST_STATEMENTS);
        return 0;
      }
      count(COUNT_INSERTED);
      s->sql = 1; /* no address: the text is sent below */
    }
    u64 conn = vdbe_u64(t, l->Vdbe_db), sql = vdbe_u64(t, l->Vdbe_zSql);
    if (!conn)
      return 0;
    u32 changed = s->sql != sql || !s->text_id || s->conn != conn;
    if (l->Vdbe_aCounter != UNKNOWN) {
      copy_counters(s->base, t, l);
      /* A new statement at an old one's address has zero counters; one that ran has vm_steps. */
#pragma clang loop unroll(full)
      for (int i = 1; i < 5; i++)
        changed |= s->base[i] ^ s->last[i];
    }
    s->running = 1;
    count(COUNT_HITS);
    s->layout = index;
    /* A known one goes on after BUSY where it stood; an unknown one was under way before we came. */
    s->flags = (running && !known ? STATEMENT_INCOMPLETE : 0) | (depth ? STATEMENT_NESTED : 0);
    s->step_ns = s->rows = s->changed = 0;
    s->conn = conn;
    s->sql = sql;
    if (changed)
      more = send_text(t, l, s, stmt, conn, sql);
  }
  s->tid = bpf_get_current_pid_tgid();

  u64 total = 0;
  if (l->sqlite3_nTotalChange != UNKNOWN)
    total = read_word(s->conn + l->sqlite3_nTotalChange, l->sqlite3_nChange_size);
  t->depth = depth + 1;
  asm volatile("" : "+r"(depth));
  depth &= FRAMES - 1;
  struct frame *f = &t->frames[depth];
  f->sp = sp;
  f->stmt = stmt;
  f->conn = s->conn;
  f->total = total;
  f->nested = 0;
  now = bpf_ktime_get_ns();
  f->begin_ns = now;
  if (fresh)
    s->begin_ns = s->end_ns = now;
  if (more)
    tails.call(ctx, TAIL_TEXT);
  return 0;
}

int step_return(struct pt_regs *ctx)
{
  u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid();
  u64 sp = PT_REGS_SP(ctx) - 8; /* the return address is popped */
  u32 index;
  u32 tgid = id >> 32;
  struct thread *t = threads.lookup(&id); /* there is one only if the process is observed */
  struct layout *l = probe_layout(ctx, &index);
  if (!t || !l)
    return 0;
  u32 depth = live_depth(t, sp - 1); /* its own frame included */
  if (depth == 0)
    return 0;
  u32 at = depth - 1;
  t->depth = at;
  asm volatile("" : "+r"(at));
  at &= FRAMES - 1;
  struct frame *f = &t->frames[at];
  if (f->sp != sp) {
    t->depth = depth;
    return 0;
  }
  struct statement_key key = {.stmt = f->stmt, .tgid = tgid};
  struct statement *s = statements.lookup(&key);
  if (!s || !s->running)
    return 0;
  s->end_ns = now;
  s->step_ns += now - f->begin_ns;
  if (l->sqlite3_nTotalChange != UNKNOWN) {
    u64 total = read_word(f->conn + l->sqlite3_nTotalChange, l->sqlite3_nChange_size);
    s64 added = total - f->total;
    s->changed += added - f->nested;
    if (depth > 1) {
      u32 outer = depth - 2;
      asm volatile("" : "+r"(outer));
      outer &= FRAMES - 1;
      if (t->frames[outer].conn == f->conn)
        t->frames[outer].nested += added;
    }
  }
  int rc = PT_REGS_RC(ctx);
  if (rc == SQLITE_ROW) {
    s->rows++;
    return 0;
  }
  if (finish(t, l, index, s, key.stmt, rc == SQLITE_DONE ? END_DONE : END_ERROR, rc))
    tails.call(ctx, TAIL_BOUND);
  return 0;
}

int reset_entry(struct pt_regs *ctx)
{
  struct statement_key key = {.stmt = PT_REGS_PARM1(ctx), .tgid = bpf_get_current_pid_tgid() >> 32};
  u32 index;
  if (!key.stmt)
    return 0;
  struct statement *s = statements.lookup(&key); /* there is one only if the process is observed */
  if (!s || !s->running || steps_itself(key.stmt, PT_REGS_SP(ctx)))
    return 0;
  struct thread *t = current_thread();
  struct layout *l = probe_layout(ctx, &index);
  if (!t || !l)
    return 0;
  if (finish(t, l, index, s, key.stmt, END_RESET, SQLITE_ROW))
    tails.call(ctx, TAIL_BOUND);
  return 0;
}

int finalize_entry(struct pt_regs *ctx)
{
  struct statement_key key = {.stmt = PT_REGS_PARM1(ctx), .tgid = bpf_get_current_pid_tgid() >> 32};
  u32 index;
  int more = 0;
  if (!key.stmt)
    return 0;
  struct statement *s = statements.lookup(&key);
  if (!s)
    return 0;
  if (s->running) {
    struct thread *t = current_thread();
    struct layout *l = probe_layout(ctx, &index);
    if (t && l)
      more = finish(t, l, index, s, key.stmt, END_FINALIZE, SQLITE_ROW);
  }
  if (!statements.delete(&key))
    count(COUNT_DELETED);
  if (more)
    tails.call(ctx, TAIL_BOUND);
  return 0;
}
