/*
 * The end of an execution: what the statement looks like then, as one record.
 */
/*
 * What one bound value adds to bound_bytes.  Without a branch, and with barriers so that the compiler makes none:
 * the verifier follows 8192 jumps on one path at most.
 */
static __always_inline u64 bound(u8 *mem, struct layout *l)
{
  u64 flags = *(u16 *)(mem + (l->Mem_flags & 63)), n = *(u32 *)(mem + (l->Mem_n & 63));
  u64 zeros = *(u32 *)(mem + (l->Mem_u & 63));
  u64 str = flags >> 1, integer = flags >> 2, real = flags >> 3, blob = flags >> 4, int_real = flags >> 5;
  u64 tail = flags & l->MEM_Zero;
  asm volatile("" : "+r"(str), "+r"(integer), "+r"(real), "+r"(blob), "+r"(int_real), "+r"(tail));
  u64 bytes = (str | blob) & 1, number = (integer | real | int_real) & 1;
  tail = (tail + 0xffff) >> 16; /* 1 when the flag is set */
  asm volatile("" : "+r"(bytes), "+r"(number), "+r"(tail));
  number &= bytes ^ 1;
  return bytes * (n + tail * zeros) + (number << 3);
}

static __always_inline void submit(struct thread *t)
{
  u64 wake = t->wake ? FORCE_WAKEUP : NO_WAKEUP;
  if (records.ringbuf_output(&t->out, sizeof(t->out), wake))
    count(LOST_STATEMENT);
}

/* The same rules as sqltrace/filters.py, which sees what is not decided here. */
static __always_inline int unwanted(struct statement *s, int rc)
{
  if (MIN_DURATION_NS && s->end_ns - s->begin_ns < MIN_DURATION_NS)
    return 1;
  if (ERRORS_ONLY && (rc == 0 || rc == SQLITE_ROW || rc == SQLITE_DONE))
    return 1;
  if (MUTING) {
    u64 text_id = s->text_id;
    return text_id && muted.lookup(&text_id);
  }
  return 0;
}

static __always_inline u64 bound_block(struct thread *t, struct layout *l, u32 used, u32 most)
{
  u64 sum = 0;
  u64 size = l->sizeof_Mem;
  if (size > MEM_MAX)
    return 0;
#pragma clang loop unroll(disable)
  for (u64 i = 0; i < most; i++) {
    asm volatile("" : "+r"(i));
    if (i >= used)
      break;
    u64 at = i * size;
    asm volatile("" : "+r"(at));
    if (at > (MEMS_PER_READ - 1) * MEM_MAX)
      break;
    sum += bound(t->block + at, l);
  }
  return sum;
}

/* Tail call: sums the bound parameters of a statement that has more than one block of them. */
int bound_walk(struct pt_regs *ctx)
{
  struct thread *t = current_thread();
  if (!t)
    return 0;
  int index = t->mem_layout;
  struct layout *l = layouts.lookup(&index);
  if (!l)
    return 0;
  u64 size = l->sizeof_Mem;
  if (size > MEM_MAX)
    size = MEM_MAX;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < 16; i++) {
    asm volatile("" : "+r"(i));
    u32 now = t->left;
    if (now == 0)
      break;
    if (now > MEMS_PER_READ)
      now = MEMS_PER_READ;
    u64 bytes = now * size;
    if (bytes > MEMS_PER_READ * MEM_MAX)
      break;
    if (bpf_probe_read_user(t->block, bytes, (void *)t->mems))
      t->out.header.flags |= STATEMENT_INCOMPLETE;
    else
      t->sum += bound_block(t, l, now, MEMS_PER_READ);
    t->left -= now;
    t->mems += bytes;
  }
  if (t->left) {
    tails.call(ctx, TAIL_BOUND);
    t->out.header.flags |= STATEMENT_INCOMPLETE;
  }
  t->out.bound_bytes = t->sum;
  submit(t);
  return 0;
}

static __always_inline void begin_out(struct thread *t, struct statement *s, u64 stmt, u32 end)
{
  u64 id = bpf_get_current_pid_tgid();
  struct record_statement *r = &t->out;
  __builtin_memset(r, 0, sizeof(*r));
  r->header.type = RECORD_STATEMENT;
  r->header.flags = s->flags | end;
  r->header.size = sizeof(*r);
  r->pid = id >> 32;
  r->tid = id;
  r->begin_ns = s->begin_ns;
  r->end_ns = s->end_ns;
  r->step_ns = s->step_ns;
  r->stmt = stmt;
  r->conn = s->conn;
  r->text_id = s->text_id;
  r->rows = s->rows;
  t->wake = count(COUNT_ENDS) % WAKE_EVERY == WAKE_EVERY - 1;
}

/* The statement vanished where no hook looks, and its address now holds another one. */
static __always_inline void finish_unseen(struct thread *t, struct statement *s, u64 stmt)
{
  begin_out(t, s, stmt, END_UNSEEN | STATEMENT_INCOMPLETE | STATEMENT_NO_COUNTERS);
  t->out.rc = SQLITE_ROW;
  s->running = 0;
  if (unwanted(s, SQLITE_ROW))
    count(COUNT_FILTERED);
  else
    submit(t);
}

static __always_inline u32 share(struct thread *t, struct layout *l, struct statement *s, u32 index)
{
  if (index >= l->counters || l->Vdbe_aCounter == UNKNOWN)
    return 0;
  u32 now = vdbe_u32(t, l->Vdbe_aCounter + 4 * index);
  return now >= s->base[index] ? now - s->base[index] : now;
}

/* Reads what the statement looks like at its end and sends the record.  Returns 1 when bound_walk must do the rest. */
static __always_inline int finish(struct thread *t, struct layout *l, u32 layout_index, struct statement *s, u64 stmt,
                                  u32 end, int rc)
{
  struct record_statement *r = &t->out;
  if ((MIN_DURATION_NS || ERRORS_ONLY || MUTING) && unwanted(s, rc)) {
    s->running = 0;
    count(COUNT_ENDS);
    count(COUNT_FILTERED);
    if (!read_vdbe(t, l, stmt)) /* the next execution is told from another statement's by these */
      copy_counters(s->last, t, l);
    return 0;
  }
  begin_out(t, s, stmt, end);
  r->rc = rc;
  s->running = 0;
  if (read_vdbe(t, l, stmt)) {
    r->header.flags |= STATEMENT_INCOMPLETE | STATEMENT_NO_COUNTERS;
    submit(t);
    return 0;
  }
  r->counters[COUNTER_FULLSCAN_STEP] = share(t, l, s, 1);
  r->counters[COUNTER_SORT] = share(t, l, s, 2);
  r->counters[COUNTER_AUTOINDEX] = share(t, l, s, 3);
  r->counters[COUNTER_VM_STEP] = share(t, l, s, 4);
  r->counters[COUNTER_REPREPARE] = share(t, l, s, 5);
  r->counters[COUNTER_FILTER_MISS] = share(t, l, s, 7);
  r->counters[COUNTER_FILTER_HIT] = share(t, l, s, 8);
  copy_counters(s->last, t, l);
  if (l->sqlite3_autoCommit != UNKNOWN) {
    u8 autocommit = 0;
    bpf_probe_read_user(&autocommit, 1, (void *)(s->conn + l->sqlite3_autoCommit));
    if (autocommit)
      r->header.flags |= STATEMENT_AUTOCOMMIT;
  }
  if (end == END_ERROR && l->sqlite3_errCode != UNKNOWN) {
    u32 code = 0;
    bpf_probe_read_user(&code, 4, (void *)(s->conn + l->sqlite3_errCode));
    if ((code & 0xff) == (rc & 0xff))
      r->rc = code;
  }
  if (end == END_DONE || end == END_ERROR) {
    if (s->changed > 0 && l->sqlite3_nChange != UNKNOWN)
      r->changes = read_word(s->conn + l->sqlite3_nChange, l->sqlite3_nChange_size);
  } else if (l->Vdbe_nChange != UNKNOWN) {
    r->changes = l->Vdbe_nChange_size == 8 ? vdbe_u64(t, l->Vdbe_nChange) : vdbe_u32(t, l->Vdbe_nChange);
  }
  u32 vars = 0;
  if (l->Vdbe_nVar != UNKNOWN) {
    vars = vdbe_u32(t, l->Vdbe_nVar);
    if (l->Vdbe_nVar_size == 2)
      vars &= 0xffff;
  }
  r->vars = vars;
  if (!vars || l->Vdbe_aVar == UNKNOWN || l->Mem_n == UNKNOWN || l->Mem_flags == UNKNOWN || l->Mem_u == UNKNOWN ||
      l->sizeof_Mem > MEM_MAX) {
    submit(t);
    return 0;
  }
  u64 mems = vdbe_u64(t, l->Vdbe_aVar);
  if (vars <= FEW_VARS) { /* most statements: a few, read in one go, without the tail call */
    u64 bytes = vars * l->sizeof_Mem;
    asm volatile("" : "+r"(bytes)); /* keep the bound below visible to the verifier */
    bytes &= 511; /* FEW_VARS * MEM_MAX is less */
    if (!bpf_probe_read_user(t->block, bytes, (void *)mems))
      r->bound_bytes = bound_block(t, l, vars, FEW_VARS);
    else
      r->header.flags |= STATEMENT_INCOMPLETE;
    submit(t);
    return 0;
  }
  t->mems = mems;
  t->sum = 0;
  t->left = vars;
  t->mem_layout = layout_index;
  return 1;
}
