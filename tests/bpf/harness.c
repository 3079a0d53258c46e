/* The programs of bpf as a shared object that a test drives (tests/bpf/harness.py). */
#define RING_PAGES 1
#define FOLLOW_CHILDREN 1
#define FOLLOW_EVERYONE 0
#define FOLLOW_FILES 0
#define OWN_PID 1
#define TASK_PID 0
#define TASK_TGID 0
#define TASK_EXIT_CODE 0
#define BPRM_FILE 0
#define FILE_INODE 0
#define INODE_NUMBER 0
#include "state.c"
#include "text.c"
#include "finish.c"
#include "follow.c"
#include "probes.c"

enum { STEP, RETURN, RESET, FINALIZE };

void enter(int what, u64 argument, u64 sp, u64 result)
{
  struct pt_regs volatile regs = {argument, sp, result};
  int (*programs[])(struct pt_regs *) = {step_entry, step_return, reset_entry, finalize_entry};
  tails_left = 33;
  tail_next = -1;
  setjmp(leave);
  if (tail_next < 0)
    programs[what]((struct pt_regs *)&regs);
  else if (tail_next == TAIL_BOUND)
    bound_walk((struct pt_regs *)&regs);
  else
    long_text((struct pt_regs *)&regs);
}

void forget_everything(void)
{
  while (tables) {
    struct table *t = tables;
    tables = t->next;
    free(t->rows);
    t->rows = 0;
    t->used = 0;
  }
  images = 0;
  ring_used = 0;
  world.ring_left = sizeof(ring);
  world.cookie = 0;
}

void forget_memory(void) { images = 0; }
void set_clock(u64 ns) { world.clock = ns; }
void set_ring(u64 bytes) { world.ring_left = bytes; }
void set_thread(u32 pid, u32 tid) { world.ids = (u64)pid << 32 | tid; }
void add_memory(u64 address, u64 size, u8 *bytes)
{
  image[images].address = address;
  image[images].size = size;
  image[images++].bytes = bytes;
}
void set_layout(u8 *bytes)
{
  int zero = 0;
  layouts.update(&zero, (struct layout *)bytes);
}
void observe(u32 pid)
{
  struct follow f = {0};
  followed.update(&pid, &f);
}
void mute(u64 text_id)
{
  u8 one = 1;
  muted.update(&text_id, &one);
}
u64 total(int what) { return *counts.lookup(&what); }
u64 take(u8 **at)
{
  u64 size = ring_used;
  *at = ring;
  ring_used = 0;
  return size;
}
