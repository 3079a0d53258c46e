// A Node program with its own SQLite inside an addon that dlopen brings in: better_sqlite3.js DATABASE [N]
// Prints how many statements of each kind it executed, for a tracer's counts to be compared with.
"use strict";

const Database = require("better-sqlite3");

const [path, count = "100"] = process.argv.slice(2);
const n = Number(count);
const db = new Database(path);
const executed = { insert: 0, select: 0, stopped: 0, failed: 0 };

db.exec("CREATE TABLE IF NOT EXISTS message(id INTEGER PRIMARY KEY, body TEXT UNIQUE)");
const insert = db.prepare("INSERT INTO message(body) VALUES(?)");
const select = db.prepare("SELECT id, body FROM message WHERE id <= ?");
const first = db.prepare("SELECT id FROM message ORDER BY id");

db.transaction(() => {
  for (let i = 0; i < n; i++) {
    insert.run(`node ${i}`);
    executed.insert++;
  }
})();
for (let i = 0; i < n; i++) {
  select.all(i % 10);
  executed.select++;
}
for (const row of first.iterate()) {
  if (row.id >= 3) break; // leaves the statement by reset
}
executed.stopped++;
try {
  insert.run("node 0");
} catch (error) {
  if (error.code !== "SQLITE_CONSTRAINT_UNIQUE") throw error;
  executed.failed++;
}
db.close();
console.log(JSON.stringify(executed));
