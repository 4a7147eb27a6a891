"""The ledger's tables, and the migrations that bring those of an earlier version up to date."""

from __future__ import annotations

SCHEMA_VERSION = 4

_UNTOLD = """
CREATE TABLE untold (
  job   INTEGER PRIMARY KEY,
  keys  TEXT NOT NULL                              -- JSON: what the event of its outcome says beyond the job's row
);
"""

_PAUSE = """
CREATE TABLE pause (
  folder  TEXT PRIMARY KEY,                        -- '': every folder
  since   REAL NOT NULL,                           -- wall clock
  person  TEXT NOT NULL                            -- who asked for it
);
"""
_JOB_FAILED = "CREATE INDEX job_failed ON job (ended_at) WHERE state = 'failed';"
_REVIEW = """
CREATE TABLE review (
  job         INTEGER PRIMARY KEY,
  folder      TEXT NOT NULL,
  path        BLOB NOT NULL,                       -- of the input, below the drop folder
  since       REAL NOT NULL,                       -- wall clock
  score       REAL,
  unusual     REAL,
  reasons     TEXT NOT NULL,                       -- JSON: why a person is to look, in words
  facts       TEXT NOT NULL,                       -- JSON: what the score was made from
  state       TEXT NOT NULL CHECK (state IN ('open', 'approving', 'rejecting', 'approved', 'rejected', 'replaced')),
  decided_at  REAL,
  person      TEXT
);
CREATE INDEX review_open ON review (folder, path) WHERE state IN ('open', 'approving', 'rejecting');
"""
_OF_DONE = {"verdict": "TEXT", "width": "INTEGER", "height": "INTEGER", "device": "TEXT", "seconds": "REAL"}
_OF_SCORE = {"score": "REAL", "coverage": "REAL"}

SCHEMA = f"""
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
  detail       TEXT,
  verdict      TEXT,                               -- this and all below: of image.done
  width        INTEGER,                            -- of the input, px
  height       INTEGER,
  device       TEXT,
  seconds      REAL,                               -- from the claim to the output
  score        REAL,                               -- that the matte is right, 0 to 1
  coverage     REAL                                -- share of the image that is subject
);
CREATE INDEX job_by_path ON job (folder, path);
-- Versions of one path are worked on one after another, so that the newest is published last.
CREATE UNIQUE INDEX job_in_flight ON job (folder, path) WHERE state IN ('claimed', 'publishing');
CREATE INDEX job_unfinished ON job (id) WHERE retired_at IS NULL;
{_JOB_FAILED}

CREATE TABLE target (
  output     BLOB    NOT NULL,                     -- the output folder
  target     BLOB    NOT NULL,                     -- below it
  folder     TEXT    NOT NULL,
  source     BLOB    NOT NULL,
  extension  TEXT    NOT NULL,                     -- which file of the set: ".png" of a plain output, a template ...
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

CREATE TABLE content (
  sha256_in    TEXT NOT NULL,
  recipe_hash  TEXT NOT NULL,
  output       BLOB NOT NULL,
  target       BLOB NOT NULL,
  sha256_out   TEXT NOT NULL,
  size_out     INTEGER NOT NULL,
  report       TEXT NOT NULL,                      -- JSON: what the first computation said of the image
  used_at      REAL NOT NULL,
  files        TEXT,                               -- JSON: the whole set; NULL: the one file above
  PRIMARY KEY (sha256_in, recipe_hash)
) WITHOUT ROWID;

CREATE INDEX target_by_age ON target (used_at);
CREATE INDEX content_by_age ON content (used_at);
{_UNTOLD}{_PAUSE}{_REVIEW}"""


def _add(table: str, columns: dict[str, str]) -> str:
    return "".join(f"ALTER TABLE {table} ADD COLUMN {name} {kind};" for name, kind in columns.items())


MIGRATIONS = {
    1: _UNTOLD,
    2: _add("job", _OF_DONE) + _JOB_FAILED + _PAUSE,
    3: _add("job", _OF_SCORE) + _add("content", {"files": "TEXT"}) + _REVIEW,
}
"""Schema -> what makes it the next one. Rows stay; a ledger is brought up in one transaction, or not at all."""

TABLES = {"job": 1, "target": 1, "content": 1, "untold": 2, "pause": 3, "review": 4}
"""Table -> the first schema that has it."""
ADOPTING = 0x726D6267
"""application_id of a ledger that was put in the place of another: originals that were kept may have outputs already,
and are compared with them before they count as new."""


def steps_from(version: int) -> str:
    """What makes a ledger of schema `version` one of SCHEMA_VERSION: one script, for one transaction."""
    return "".join(MIGRATIONS[each] for each in range(version, SCHEMA_VERSION))
