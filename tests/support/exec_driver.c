/* Executes its arguments on a database with nothing but sqlite3_exec: exec_driver DATABASE SQL... */
#include <stdio.h>

#include "sqlite3.h"

int driver_main(int argc, char **argv) {
  sqlite3 *db = 0;
  int failed = 0;
  if (argc < 2 || sqlite3_open(argv[1], &db) != SQLITE_OK) return 2;
  for (int i = 2; i < argc; i++) {
    char *message = 0;
    if (sqlite3_exec(db, argv[i], 0, 0, &message) != SQLITE_OK) {
      fprintf(stderr, "%s\n", message ? message : "out of memory");
      sqlite3_free(message);
      failed = 1;
    }
  }
  sqlite3_close(db);
  return failed;
}

int main(int argc, char **argv) { return driver_main(argc, argv); }
