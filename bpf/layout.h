/*
 * Offsets of SQLite's structs in one binary, as hooks use them.
 *
 * Filled at run time from a Resolution by sqltrace/events/wire.py, so that one compiled hook serves every binary.
 * A member is named after SQLite's struct and member; its value is the offset in bytes, UNKNOWN where not resolved.
 */
#ifndef SQLTRACE_LAYOUT_H
#define SQLTRACE_LAYOUT_H

#define UNKNOWN 0xffff

struct layout { /* 64 bytes */
  u16 vdbe_read;       /* how many bytes from the start of Vdbe hold every member below */
  u16 Vdbe_db;
  u16 Vdbe_zSql;
  u16 Vdbe_nVar;
  u16 Vdbe_nVar_size;  /* 2 or 4 bytes */
  u16 Vdbe_aVar;
  u16 Vdbe_aCounter;
  u16 counters;        /* how many u32 in Vdbe.aCounter, 9 at most */
  u16 Vdbe_eVdbeState; /* one byte; 2 while the statement runs.  UNKNOWN before 3.38: */
  u16 Vdbe_magic;      /* then these two: running if magic is 0x2df20da3 and pc is not negative */
  u16 Vdbe_pc;
  u16 Vdbe_nChange;
  u16 Vdbe_nChange_size; /* 4 or 8 bytes */
  u16 sqlite3_aDb;
  u16 sqlite3_errCode;
  u16 sqlite3_nChange;
  u16 sqlite3_nTotalChange;
  u16 sqlite3_nChange_size; /* of both: 4 or 8 bytes */
  u16 sqlite3_autoCommit;
  u16 Db_pBt;
  u16 Btree_pBt;
  u16 BtShared_pPager;
  u16 Pager_zFilename;
  u16 sizeof_Mem;
  u16 Mem_u;
  u16 Mem_n;
  u16 Mem_flags;
  u16 MEM_Zero; /* the flag that says Mem.u.nZero zero bytes follow; 0 where not known */
  u16 reserved[4];
};

#define VDBE_STATE_RUN 2
#define VDBE_MAGIC_RUN 0x2df20da3
#define MEM_Str 0x0002
#define MEM_Int 0x0004
#define MEM_Real 0x0008
#define MEM_Blob 0x0010

#endif
