/*
 * A statement's SQL and its main database, sent once, before the first execution.
 */
static __always_inline u64 fresh_text_id(void)
{
  int zero = 0;
  u64 *n = next_text_id.lookup(&zero);
  return n ? __sync_fetch_and_add(n, 1) + 1 : 0;
}

/* Sends the path of the connection's main database.  Returns 0 when it arrived. */
static __always_inline int send_database(struct thread *t, struct layout *l, u64 conn, u64 text_id)
{
  u64 id = bpf_get_current_pid_tgid(), p = 0;
  struct record_database *r = (struct record_database *)t->block;
  long n = 0;
  if (l->sqlite3_aDb != UNKNOWN && l->Db_pBt != UNKNOWN && l->Btree_pBt != UNKNOWN && l->BtShared_pPager != UNKNOWN &&
      l->Pager_zFilename != UNKNOWN) {
    p = read_u64(conn + l->sqlite3_aDb);
    p = p ? read_u64(p + l->Db_pBt) : 0;
    p = p ? read_u64(p + l->Btree_pBt) : 0;
    p = p ? read_u64(p + l->BtShared_pPager) : 0;
    p = p ? read_u64(p + l->Pager_zFilename) : 0;
  }
  if (p)
    n = bpf_probe_read_user_str(t->block + sizeof(*r), MAX_PATH, (void *)p);
  if (n < 0)
    n = 0;
  if (n > MAX_PATH)
    n = MAX_PATH;
  r->header.type = RECORD_DATABASE;
  r->header.flags = 0;
  r->header.size = sizeof(*r) + n;
  r->pid = id >> 32;
  r->tid = id;
  r->text_id = text_id;
  r->conn = conn;
  r->length = n ? n - 1 : 0;
  r->reserved = 0;
  return records.ringbuf_output(r, sizeof(*r) + n, NO_WAKEUP);
}

static __always_inline void head_text(struct record_text *r, struct thread *t, u32 flags, u64 length)
{
  u64 id = bpf_get_current_pid_tgid();
  r->header.type = RECORD_TEXT;
  r->header.flags = flags;
  r->header.size = sizeof(*r) + length;
  r->pid = id >> 32;
  r->tid = id;
  r->text_id = t->text_id;
  r->stmt = t->text_stmt;
  r->conn = t->text_conn;
  r->offset = t->text_offset;
  r->length = length;
  r->reserved = 0;
}

/* Sends database and the first piece of the text.  Returns 1 when more is to follow by the tail call. */
static __always_inline int send_text(struct thread *t, struct layout *l, struct statement *s, u64 stmt, u64 conn, u64 sql)
{
  struct record_text *r = (struct record_text *)t->block;
  long n = 0;
  u32 flags = TEXT_LAST;
  s->text_id = 0;
  t->text_id = fresh_text_id();
  if (send_database(t, l, conn, t->text_id)) {
    count(LOST_DATABASE);
    return 0;
  }
  t->text = sql;
  t->text_offset = 0;
  t->text_stmt = stmt;
  t->text_conn = conn;
  if (sql) {
    n = bpf_probe_read_user_str(t->block + sizeof(*r), SHORT_TEXT, (void *)sql);
    if (n < 0)
      flags |= TEXT_NULL | TEXT_TRUNCATED;
    else if (n >= SHORT_TEXT)
      flags = 0;
  } else {
    flags |= TEXT_NULL;
  }
  if (n > SHORT_TEXT)
    n = SHORT_TEXT;
  if (n > 0)
    n--;
  else
    n = 0;
  head_text(r, t, flags, n);
  if (records.ringbuf_output(r, sizeof(*r) + n, NO_WAKEUP)) {
    count(LOST_TEXT);
    return 0;
  }
  s->text_id = t->text_id;
  t->text_offset = n;
  return !(flags & TEXT_LAST);
}

/* Tail call: the rest of a long text, straight into the ring, 16 KiB at a time. */
int long_text(struct pt_regs *ctx)
{
  struct thread *t = current_thread();
  if (!t)
    return 0;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < TEXT_PIECES; i++) {
    asm volatile("" : "+r"(i));
    struct record_text *r = records.ringbuf_reserve(sizeof(*r) + LONG_TEXT);
    if (!r) {
      count(LOST_TEXT); /* the decoder sees the gap: a text without its last piece is not used */
      return 0;
    }
    long n = bpf_probe_read_user_str((u8 *)r + sizeof(*r), LONG_TEXT, (void *)(t->text + t->text_offset));
    u32 flags = 0;
    if (n < 0) {
      flags = TEXT_LAST | TEXT_TRUNCATED;
      n = 0;
    } else if (n < LONG_TEXT) {
      flags = TEXT_LAST;
    }
    if (n > 0)
      n--;
    head_text(r, t, flags, n);
    r->header.size = sizeof(*r) + LONG_TEXT;
    records.ringbuf_submit(r, FORCE_WAKEUP);
    t->text_offset += n;
    if (flags)
      return 0;
  }
  tails.call(ctx, TAIL_TEXT);
  /* 33 tail calls are spent: 34 MB. */
  struct record_text *r = (struct record_text *)t->block;
  head_text(r, t, TEXT_LAST | TEXT_TRUNCATED, 0);
  if (records.ringbuf_output(r, sizeof(*r), NO_WAKEUP))
    count(LOST_TEXT);
  return 0;
}
