BEGIN TRANSACTION;
CREATE TABLE content (
  sha256_in    TEXT NOT NULL,
  recipe_hash  TEXT NOT NULL,
  output       BLOB NOT NULL,
  target       BLOB NOT NULL,
  sha256_out   TEXT NOT NULL,
  size_out     INTEGER NOT NULL,
  report       TEXT NOT NULL,                      -- JSON: what the first computation said of the picture
  used_at      REAL NOT NULL,
  PRIMARY KEY (sha256_in, recipe_hash)
) WITHOUT ROWID;
INSERT INTO "content" VALUES('273bab23853a15e433e9b8413c593a8d3a50a943ece2d859cee7c06437ee39d3','8f8a0acb444f1e549afd51c0156ecd83',X'2F746D702F62662F6F7574707574',X'73686F65732F612E706E67','da66d9abc52bb82391f72beb081b74f2145591cde3153db08509b548c7627eff',7895,'{"verdict": "ok", "device": "fake", "model": "u2netp", "coverage": 0.4982, "soft": 0.8906, "peak": 1.0, "batch": 1}',1.79582630007807493208e+09);
INSERT INTO "content" VALUES('e60e37b9f2cec2ec08d72e40d63929174e4dee0a90fa102ac1b67a754f190aa7','8f8a0acb444f1e549afd51c0156ecd83',X'2F746D702F62662F6F7574707574',X'622E706E67','9bfc88feba838b451d08c4b32e9573cdd3defd2a8a9f14ef8321aebb1f56cd71',7898,'{"verdict": "ok", "device": "fake", "model": "u2netp", "coverage": 0.4982, "soft": 0.8906, "peak": 1.0, "batch": 1}',1.79582630007736206061e+09);
CREATE TABLE job (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: names of temporaries hang on it
  folder       TEXT    NOT NULL,
  path         BLOB    NOT NULL,                   -- below the drop folder, as the bytes that the file system has
  inode        INTEGER NOT NULL,
  size         INTEGER NOT NULL,
  mtime_ns     INTEGER NOT NULL,
  ctime_ns     INTEGER NOT NULL,                   -- before the claim; our own rename changes it
  state        TEXT    NOT NULL CHECK (state IN ('waiting', 'claimed', 'publishing', 'done', 'failed')),
  attempt      INTEGER NOT NULL,
  by_rename    INTEGER NOT NULL,                   -- 1: the bytes lie in the claim folder; 0: where they were dropped
  final        INTEGER NOT NULL,
  first_seen   REAL    NOT NULL,                   -- wall clock, for people
  claimed_at   REAL    NOT NULL,
  ended_at     REAL,
  retired_at   REAL,                               -- the original is where it belongs; nothing is left to do
  target       BLOB,
  sha256_out   TEXT,
  size_out     INTEGER,
  reason       TEXT,
  detail       TEXT
);
INSERT INTO "job" VALUES(1,'shop',X'73686F65732F612E706E67',2146852,7637,1795826299957261839,1795826299957261839,'done',1,1,0,1.79582629995792031288e+09,1.79582630005882596972e+09,1.79582630007807493208e+09,1795826300.08074,X'73686F65732F612E706E67','da66d9abc52bb82391f72beb081b74f2145591cde3153db08509b548c7627eff',7895,NULL,NULL);
INSERT INTO "job" VALUES(2,'shop',X'622E706E67',2146854,7725,1795826299958635177,1795826299958635177,'done',1,1,0,1.79582629995910286898e+09,1.79582630006823611252e+09,1.79582630007736206061e+09,1.79582630007829594613e+09,X'622E706E67','9bfc88feba838b451d08c4b32e9573cdd3defd2a8a9f14ef8321aebb1f56cd71',7898,NULL,NULL);
INSERT INTO "job" VALUES(3,'shop',X'616761696E2E706E67',2146874,7637,1795826300081699935,1795826300081699935,'done',1,1,0,1795826300.08244,1.7958263001834270954e+09,1.79582630018981194495e+09,1.7958263001912651062e+09,X'616761696E2E706E67','da66d9abc52bb82391f72beb081b74f2145591cde3153db08509b548c7627eff',7895,NULL,NULL);
INSERT INTO "job" VALUES(4,'shop',X'62726F6B656E2E6A7067',2146875,640,1795826300082334677,1795826300082334677,'failed',1,1,0,1.79582630008293128017e+09,1.79582630018580794327e+09,1.79582630018932199473e+09,1.7958263001918489933e+09,NULL,NULL,NULL,'unidentified','no known image format begins with 6e 6f 20 69 6d 61 67 65');
INSERT INTO "job" VALUES(5,'shop',X'6C6174652D332E706E67',2146879,7578,1795826300193822100,1795826300193822100,'publishing',1,1,0,1.79582630019422650339e+09,1795826300.29503,NULL,NULL,X'6C6174652D332E706E67','687c3f7a8f988a1a992893c3a408d5534adadc9bd941650cc7cb269b78aa5cef',7888,NULL,NULL);
INSERT INTO "job" VALUES(6,'shop',X'6C6174652D342E706E67',2146880,7636,1795826300194912929,1795826300194912929,'claimed',1,1,0,1.79582630019718194006e+09,1.79582630029997801783e+09,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(7,'shop',X'6C6174652D352E706E67',2146881,7540,1795826300195816840,1795826300195816840,'claimed',1,1,0,1.79582630019726681705e+09,1.79582630029997801783e+09,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(8,'shop',X'6C6174652D362E706E67',2146882,7528,1795826300196701753,1795826300196701753,'claimed',1,1,0,1.79582630019730472565e+09,1.79582630029997801783e+09,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE target (
  output     BLOB    NOT NULL,                     -- the output folder
  target     BLOB    NOT NULL,                     -- below it
  folder     TEXT    NOT NULL,
  source     BLOB    NOT NULL,
  extension  TEXT    NOT NULL,
  base       BLOB    NOT NULL,                     -- the name it would have if nothing were taken ...
  number     INTEGER NOT NULL,                     -- ... and which version of it this is: a, a~2, a~3
  pending    TEXT,                                 -- sha256 of what is about to be renamed there
  sha256     TEXT,                                 -- of what was published there, and how it looked to stat
  size       INTEGER,
  inode      INTEGER,
  mtime_ns   INTEGER,
  sidecar    INTEGER NOT NULL DEFAULT 0,
  used_at    REAL    NOT NULL,
  UNIQUE (output, target),
  UNIQUE (output, folder, source, extension)
);
INSERT INTO "target" VALUES(X'2F746D702F62662F6F7574707574',X'73686F65732F612E706E67','shop',X'73686F65732F612E706E67','.png',X'73686F65732F612E706E67',1,NULL,'da66d9abc52bb82391f72beb081b74f2145591cde3153db08509b548c7627eff',7895,2146872,1795826300073340431,0,1.79582630007807493208e+09);
INSERT INTO "target" VALUES(X'2F746D702F62662F6F7574707574',X'622E706E67','shop',X'622E706E67','.png',X'622E706E67',1,NULL,'9bfc88feba838b451d08c4b32e9573cdd3defd2a8a9f14ef8321aebb1f56cd71',7898,2146871,1795826300073340431,0,1.79582630007736206061e+09);
INSERT INTO "target" VALUES(X'2F746D702F62662F6F7574707574',X'616761696E2E706E67','shop',X'616761696E2E706E67','.png',X'616761696E2E706E67',1,NULL,'da66d9abc52bb82391f72beb081b74f2145591cde3153db08509b548c7627eff',7895,2146876,1795826300184830949,0,1.79582630018981194495e+09);
INSERT INTO "target" VALUES(X'2F746D702F62662F6F7574707574',X'6C6174652D332E706E67','shop',X'6C6174652D332E706E67','.png',X'6C6174652D332E706E67',1,'687c3f7a8f988a1a992893c3a408d5534adadc9bd941650cc7cb269b78aa5cef',NULL,NULL,NULL,NULL,0,1.79582630030341506002e+09);
CREATE TABLE untold (
  job   INTEGER PRIMARY KEY,
  keys  TEXT NOT NULL                              -- JSON: what the event of its outcome says beyond the job's row
);
INSERT INTO "untold" VALUES(5,'{"verdict": "ok", "device": "fake", "model": "u2netp", "coverage": 0.4982, "soft": 0.8906, "batch": 1, "width": 64, "height": 48, "format": "PNG", "bytes_in": 7578, "reused": false, "sha256_in": "e8e244139ddaeb1aa3ae0ef8828f9d6559b4fd852f39a4510a11464841a31699", "milliseconds": {"wait": 2.05, "decode": 1.74, "queue": 0.15, "engine": 0.4, "encode": 1.83, "total": 6.43}}');
CREATE INDEX job_by_path ON job (folder, path);
CREATE UNIQUE INDEX job_in_flight ON job (folder, path) WHERE state IN ('claimed', 'publishing');
CREATE INDEX job_unfinished ON job (id) WHERE retired_at IS NULL;
CREATE INDEX target_by_age ON target (used_at);
CREATE INDEX content_by_age ON content (used_at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('job',8);
COMMIT;
PRAGMA user_version=2;
