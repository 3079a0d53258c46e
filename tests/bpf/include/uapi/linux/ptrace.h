/*
 * Stand-ins for what bcc and the kernel give a BPF program, so that the programs of bpf run in user space: maps are small tables,
 * user memory is an image that the test fills, the clock and the ids are set by the test, the ring is a buffer.
 * bcc's map methods are calls through a struct of function pointers, which C writes in the same way.
 */
#ifndef STANDIN_H
#define STANDIN_H
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

struct pt_regs {
  u64 di, sp, ax;
};
struct bpf_raw_tracepoint_args {
  u64 args[8];
};
#define PT_REGS_PARM1(c) ((c)->di)
#define PT_REGS_SP(c) ((c)->sp)
#define PT_REGS_RC(c) ((c)->ax)

/* What the test sets. */
static struct { u64 clock, ids, cookie, ring_left; } world;
static struct { u64 address, size; u8 *bytes; } image[64];
static int images;
static u8 ring[64 << 20];
static u64 ring_used;

/* -- maps */
struct table {
  u32 key, leaf, most, used;
  int array, lru;
  u8 *rows;
  struct table *next;
};
static struct table *tables;

static u8 *table_find(struct table *t, const void *key)
{
  if (!t->rows) {
    t->rows = calloc(t->most, t->key + t->leaf + 16);
    t->next = tables;
    tables = t;
  }
  u64 size = t->leaf + 8 + t->key;
  if (t->array) {
    u32 i = *(const u32 *)key;
    return i < t->most ? t->rows + i * size : 0;
  }
  for (u32 i = 0; i < t->used; i++)
    if (!memcmp(t->rows + i * size + t->leaf + 8, key, t->key))
      return t->rows + i * size;
  return 0;
}

static int table_delete(struct table *t, const void *key)
{
  u64 size = t->leaf + 8 + t->key;
  u8 *row = table_find(t, key);
  if (!row || t->array)
    return -2;
  t->used--;
  memmove(row, row + size, t->rows + t->used * size - row);
  return 0;
}

static int table_update(struct table *t, const void *key, const void *leaf)
{
  u64 size = t->leaf + 8 + t->key;
  u8 *row = table_find(t, key);
  if (!row) {
    if (t->used == t->most) {
      if (!t->lru)
        return -7;
      t->used--; /* the oldest makes room */
      memmove(t->rows, t->rows + size, t->used * size);
    }
    row = t->rows + t->used++ * size;
    memcpy(row + t->leaf + 8, key, t->key);
  }
  memcpy(row, leaf, t->leaf);
  return 0;
}

#define TABLE(K, L, N, MOST, ARRAY, LRU)                                                                               \
  static struct table N##_table = {sizeof(K), sizeof(L), MOST, 0, ARRAY, LRU, 0, 0};                                   \
  static L *N##_lookup(K *k) { return (L *)table_find(&N##_table, k); }                                                \
  static int N##_update(K *k, L *l) { return table_update(&N##_table, k, l); }                                         \
  static int N##_delete(K *k) { return table_delete(&N##_table, k); }                                                  \
  static struct {                                                                                                      \
    L *(*lookup)(K *);                                                                                                 \
    int (*update)(K *, L *);                                                                                           \
    int (*delete)(K *);                                                                                                \
  } N __attribute__((unused)) = {N##_lookup, N##_update, N##_delete};
#define BPF_ARRAY(N, L, MOST) TABLE(int, L, N, MOST, 1, 0)
#define BPF_PERCPU_ARRAY(N, L, MOST) TABLE(int, L, N, MOST, 1, 0)
#define BPF_HASH(N, K, L, MOST) TABLE(K, L, N, MOST, 0, 0)
#define BPF_F_TABLE(KIND, K, L, N, MOST, FLAGS) TABLE(K, L, N, MOST, 0, 0)
#define BPF_TABLE(KIND, K, L, N, MOST) TABLE(K, L, N, MOST, 0, 1)
#define BPF_F_NO_PREALLOC 1

/* -- the ring: each record after its length */
static int ring_output(void *data, u64 size, u64 flags)
{
  (void)flags;
  u32 length = size;
  if (size + 8 > world.ring_left || ring_used + size + 4 > sizeof(ring))
    return -11;
  world.ring_left -= size + 8;
  memcpy(ring + ring_used, &length, 4);
  memcpy(ring + ring_used + 4, data, size);
  ring_used += 4 + size;
  return 0;
}
static u64 reserved[4096];
static u32 reserved_size;
static void *ring_reserve(u64 size)
{
  reserved_size = size;
  return size + 8 > world.ring_left ? 0 : reserved;
}
static void ring_submit(void *data, u64 flags) { ring_output(data, reserved_size, flags); }
#define BPF_RINGBUF_OUTPUT(N, PAGES)                                                                                   \
  static struct {                                                                                                      \
    int (*ringbuf_output)(void *, u64, u64);                                                                           \
    void *(*ringbuf_reserve)(u64);                                                                                     \
    void (*ringbuf_submit)(void *, u64);                                                                               \
  } N __attribute__((unused)) = {ring_output, ring_reserve, ring_submit};

/* -- tail calls leave the program and enter another, 33 times at most */
static jmp_buf leave;
static int tail_next, tails_left;
static void tail_call(void *ctx, int index)
{
  (void)ctx;
  if (tails_left-- > 0) {
    tail_next = index;
    longjmp(leave, 1);
  }
}
#define BPF_PROG_ARRAY(N, MOST)                                                                                        \
  static struct {                                                                                                      \
    void (*call)(void *, int);                                                                                         \
  } N __attribute__((unused)) = {tail_call};

/* -- helpers */
static long bpf_probe_read_user(void *to, u64 size, const void *from)
{
  u64 at = (u64)from;
  for (int i = 0; i < images; i++)
    if (at >= image[i].address && at + size <= image[i].address + image[i].size) {
      memcpy(to, image[i].bytes + (at - image[i].address), size);
      return 0;
    }
  memset(to, 0, size);
  return -14;
}
static long bpf_probe_read_user_str(void *to, u64 size, const void *from)
{
  u8 *out = to;
  for (u64 i = 0; i < size; i++) {
    if (bpf_probe_read_user(out + i, 1, (const u8 *)from + i))
      return -14;
    if (!out[i])
      return i + 1;
  }
  out[size - 1] = 0;
  return size;
}
static long bpf_probe_read_kernel(void *to, u64 size, const void *from)
{
  memcpy(to, from, size);
  return 0;
}
static u64 bpf_ktime_get_ns(void) { return world.clock; }
static u64 bpf_get_current_pid_tgid(void) { return world.ids; }
static u64 bpf_get_current_uid_gid(void) { return 0; }
static u64 bpf_get_current_cgroup_id(void) { return 1; }
static u32 bpf_get_smp_processor_id(void) { return 0; }
static long bpf_send_signal(u32 number) { return number ? 0 : -1; }
static long bpf_get_current_comm(void *to, u32 size)
{
  memset(to, 0, size);
  memcpy(to, "standin", 7);
  return 0;
}
static u64 bpf_get_attach_cookie(void *ctx)
{
  (void)ctx;
  return world.cookie;
}
#define RAW_TRACEPOINT_PROBE(N) int raw_tracepoint__##N(struct bpf_raw_tracepoint_args *ctx)
#endif
