-- The store's tables and functions. Run under a lock when `version` is behind, whatever is there already; what changes later
-- gets the next number and a step here.
CREATE SCHEMA IF NOT EXISTS portcullis;

CREATE TABLE IF NOT EXISTS portcullis.version (number integer NOT NULL);
INSERT INTO portcullis.version SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM portcullis.version);

-- Times are milliseconds since the epoch. Records are sealed.
CREATE TABLE IF NOT EXISTS portcullis.sessions (
  id bytea PRIMARY KEY, revision bigint NOT NULL, expires bigint NOT NULL, record bytea NOT NULL);
CREATE INDEX IF NOT EXISTS sessions_expires ON portcullis.sessions (expires);
CREATE TABLE IF NOT EXISTS portcullis.handles (
  id bytea PRIMARY KEY, session bytea NOT NULL, expires bigint NOT NULL, record bytea NOT NULL);
CREATE INDEX IF NOT EXISTS handles_session ON portcullis.handles (session);
CREATE INDEX IF NOT EXISTS handles_expires ON portcullis.handles (expires);
-- Things that are taken once; `waiting` ones have a budget.
CREATE TABLE IF NOT EXISTS portcullis.kept (
  id bytea PRIMARY KEY, waiting boolean NOT NULL, expires bigint NOT NULL, value bytea NOT NULL);
CREATE INDEX IF NOT EXISTS kept_expires ON portcullis.kept (expires);
-- What was said once.
CREATE TABLE IF NOT EXISTS portcullis.said (id bytea PRIMARY KEY, expires bigint NOT NULL);
CREATE TABLE IF NOT EXISTS portcullis.leases (
  session bytea PRIMARY KEY, owner bytea NOT NULL, until timestamptz NOT NULL);
-- What others have to hear of.
CREATE TABLE IF NOT EXISTS portcullis.events (
  number bigserial PRIMARY KEY, ended boolean NOT NULL, session bytea NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp());

-- 2: records have another form, and sessions are found by whose they are. Tables are altered once: that locks them.
DO $$ BEGIN
  IF (SELECT number FROM portcullis.version) < 2 THEN
    DELETE FROM portcullis.sessions;
    DELETE FROM portcullis.handles;
    ALTER TABLE portcullis.sessions ADD COLUMN tags bytea[] NOT NULL, ADD COLUMN used bigint;
    CREATE INDEX sessions_tags ON portcullis.sessions USING gin (tags);
    UPDATE portcullis.version SET number = 2;
  END IF;
END $$;

-- 3: what processes put there for all of them, under names that only they can work out; sealed.
CREATE TABLE IF NOT EXISTS portcullis.shelf (name bytea PRIMARY KEY, expires bigint NOT NULL, value bytea NOT NULL);
UPDATE portcullis.version SET number = 3 WHERE number < 3;

-- One at a time, so that numbers become visible in their order.
CREATE OR REPLACE FUNCTION portcullis.tell(gone boolean, which bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(8246347);
  INSERT INTO portcullis.events (ended, session) VALUES (gone, which);
  PERFORM pg_notify('portcullis', '');
END $$;

CREATE OR REPLACE FUNCTION portcullis.end_session(which bytea) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE removed integer;
BEGIN
  DELETE FROM portcullis.sessions WHERE id = which;
  GET DIAGNOSTICS removed = ROW_COUNT;
  DELETE FROM portcullis.handles WHERE session = which;
  PERFORM portcullis.tell(true, which);
  RETURN removed > 0;
END $$;

-- Done twice, it is done.
CREATE OR REPLACE FUNCTION portcullis.replace_session(which bytea, next bigint, value bytea)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE replaced integer;
BEGIN
  UPDATE portcullis.sessions SET revision = next, record = value
    WHERE id = which AND (revision = next - 1 OR (revision = next AND record = value));
  GET DIAGNOSTICS replaced = ROW_COUNT;
  IF replaced > 0 THEN PERFORM portcullis.tell(false, which); END IF;
  RETURN replaced > 0;
END $$;

CREATE OR REPLACE FUNCTION portcullis.keep_waiting(which bytea, until bigint, what bytea, overhead bigint, budget bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(8246348);
  IF (SELECT coalesce(sum(length(value) + overhead), 0) FROM portcullis.kept WHERE waiting)
     + length(what) + overhead > budget THEN
    RETURN false;
  END IF;
  INSERT INTO portcullis.kept (id, waiting, expires, value) VALUES (which, true, until, what)
    ON CONFLICT (id) DO UPDATE SET expires = until, value = what;
  RETURN true;
END $$;
