-- A database with an object of every common kind.
CREATE ROLE clinic_owner LOGIN PASSWORD 'sesame';
CREATE ROLE reader;
GRANT reader TO clinic_owner;
CREATE DATABASE clinic OWNER clinic_owner CONNECTION LIMIT 50;
ALTER DATABASE clinic SET work_mem = '5MB';
ALTER DATABASE clinic SET search_path = app, "$user", public;
ALTER DATABASE clinic SET datestyle = 'SQL, DMY';
ALTER ROLE reader IN DATABASE clinic SET statement_timeout = '1min';
COMMENT ON DATABASE clinic IS 'it''s a \clinic';
REVOKE CONNECT ON DATABASE clinic FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE clinic TO reader WITH GRANT OPTION;
\connect clinic
CREATE EXTENSION pg_trgm;
CREATE EXTENSION hstore SCHEMA public;
CREATE SCHEMA app AUTHORIZATION clinic_owner;
CREATE SCHEMA "odd/name.%";
GRANT USAGE ON SCHEMA app TO reader;
SET search_path = app, public;

CREATE TYPE mood AS ENUM ('bad', 'fine', 'it''s good');
CREATE TYPE address AS (street text, number int);
CREATE DOMAIN email AS text CHECK (VALUE ~ '@') NOT NULL DEFAULT 'a@b';
CREATE TYPE span AS RANGE (subtype = timestamptz);
CREATE COLLATION plain (provider = libc, locale = 'C');
CREATE FUNCTION upper_of(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT upper($1) $$;
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
    NEW.touched := coalesce(NEW.touched, 0) + 1;
    RETURN NEW;
END $f$;
CREATE PROCEDURE nothing(n int) LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE OPERATOR === (leftarg = text, rightarg = text, function = texteq);

CREATE TABLE people (
    id int GENERATED ALWAYS AS IDENTITY (START WITH 7 INCREMENT BY 3) PRIMARY KEY,
    name text COLLATE plain NOT NULL,
    shout text GENERATED ALWAYS AS (upper_of(name)) STORED,
    feels mood DEFAULT 'fine',
    lives address,
    mail email,
    tags hstore,
    parts int[],
    doc jsonb,
    raw bytea,
    at timestamptz DEFAULT '2026-03-02 14:30:00.123456+03',
    length interval,
    ratio float8,
    cost numeric(20, 5),
    dropped int,
    touched int,
    EXCLUDE USING gist (int4range(id, id, '[]') WITH &&),
    CHECK (length(name) < 100)
);
ALTER TABLE people DROP COLUMN dropped;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION touched();
INSERT INTO people (name, feels, lives, tags, parts, doc, raw, length, ratio, cost)
    SELECT E'näme\t\\' || n || E'\n', (enum_range(NULL::mood))[1 + n % 3], ROW('a "street"'::text, n)::address, hstore('k', n::text),
        ARRAY[n, NULL, -n], jsonb_build_object('n', n, 'text', 'it''s'), decode(md5(n::text), 'hex'),
        make_interval(days => n, mins => -n), CASE WHEN n % 7 = 0 THEN 'NaN'::float8 ELSE 1 / n::float8 END, n / 3.0
    FROM generate_series(1, 1000) n;
UPDATE people SET name = NULL WHERE false;
CREATE INDEX people_name ON people USING gin (name gin_trgm_ops);
CREATE UNIQUE INDEX people_mail ON people (lower(name), id) WHERE feels <> 'bad';
CREATE STATISTICS people_both ON name, feels FROM people;
ALTER TABLE people ALTER COLUMN name SET STATISTICS 500;
COMMENT ON TABLE people IS 'who they are';
COMMENT ON COLUMN people.shout IS 'computed';
COMMENT ON INDEX people_name IS 'by parts of it';
COMMENT ON CONSTRAINT people_pkey ON people IS 'their number';
COMMENT ON INDEX people_pkey IS 'an index, too';
ALTER TABLE people ENABLE ROW LEVEL SECURITY;
ALTER TABLE people FORCE ROW LEVEL SECURITY;
CREATE POLICY mine ON people FOR SELECT TO reader USING (name = current_user);
GRANT SELECT, UPDATE (name) ON people TO reader;

CREATE TABLE visits (
    id bigserial PRIMARY KEY,
    person int NOT NULL REFERENCES people ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    before bigint REFERENCES visits,
    note text
);
COMMENT ON CONSTRAINT visits_person_fkey ON visits IS 'whose it was';
INSERT INTO visits (person, note) SELECT id, NULLIF(repeat('x', id % 40), '') FROM people;
UPDATE visits SET before = id - 1 WHERE id > 1;
CREATE RULE no_deletes AS ON DELETE TO visits DO INSTEAD NOTHING;
ALTER TABLE visits OWNER TO clinic_owner;

CREATE TABLE log (at date NOT NULL, id bigint, text text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE log_2025 PARTITION OF log FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE log_2026 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY HASH (id);
CREATE TABLE log_2026_0 PARTITION OF log_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE log_2026_1 PARTITION OF log_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE log_rest PARTITION OF log DEFAULT;
CREATE INDEX ON log (text);
INSERT INTO log SELECT '2025-06-01'::date + n, n, 'line ' || n FROM generate_series(1, 700) n;
CREATE TABLE points (log_at date, log_id bigint, FOREIGN KEY (log_at, log_id) REFERENCES log);
INSERT INTO points SELECT at, id FROM log LIMIT 50;

-- Where a row of it belongs depends on numbers of the enum, which are others after a load.
CREATE TABLE felt (what mood, n int) PARTITION BY HASH (what);
CREATE TABLE felt_0 PARTITION OF felt FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE felt_1 PARTITION OF felt FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE felt_2 PARTITION OF felt FOR VALUES WITH (MODULUS 3, REMAINDER 2);
INSERT INTO felt SELECT (enum_range(NULL::mood))[1 + n % 3], n FROM generate_series(1, 99) n;

CREATE TABLE parent (n int);
CREATE TABLE child (more text) INHERITS (parent);
INSERT INTO parent VALUES (1), (2);
INSERT INTO child VALUES (3, 'three');
CREATE TABLE wide (n int PRIMARY KEY, filler text, other int);
CREATE UNLOGGED TABLE quick AS SELECT n FROM generate_series(1, 10) n;
CREATE TABLE nothing_in_it (n int);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE "odd/name.%"."Table ""of"" ../all" ("a ""column""" text, "Select" int);
INSERT INTO "odd/name.%"."Table ""of"" ../all" VALUES ('x', 1), (NULL, 2), (E'\\.', 3), ('\N', 4);
CREATE SEQUENCE steps INCREMENT BY -5 MAXVALUE 1000 START WITH 1000;
SELECT nextval('steps'), nextval('steps');
CREATE SEQUENCE untouched START WITH 44;

CREATE VIEW names AS SELECT id, name FROM people WITH LOCAL CHECK OPTION;
CREATE VIEW of_names AS SELECT count(*) AS n FROM names;
CREATE MATERIALIZED VIEW sums AS SELECT feels, count(*) AS n, avg(cost) AS mean FROM people GROUP BY feels;
CREATE UNIQUE INDEX ON sums (feels);
CREATE MATERIALIZED VIEW empty_one AS SELECT * FROM sums WITH NO DATA;
ALTER VIEW names OWNER TO clinic_owner;
GRANT SELECT ON names TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE clinic_owner IN SCHEMA app GRANT SELECT ON TABLES TO reader;
CREATE PUBLICATION changes FOR TABLE people, visits;
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE EVENT TRIGGER watching ON ddl_command_end WHEN TAG IN ('CREATE ACCESS METHOD') EXECUTE FUNCTION watch();
CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);

SELECT lo_from_bytea(4242, decode(repeat('00ff5c27', 50000), 'hex'));
SELECT lo_create(4243);
ALTER LARGE OBJECT 4242 OWNER TO clinic_owner;
GRANT SELECT ON LARGE OBJECT 4242 TO reader;
COMMENT ON LARGE OBJECT 4242 IS 'a picture';

-- Kinds that few have.
CREATE FOREIGN DATA WRAPPER nobody;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER nobody OPTIONS (place 'far ''away''');
CREATE USER MAPPING FOR clinic_owner SERVER elsewhere OPTIONS (password 'sesame');
CREATE FOREIGN TABLE afar (n int OPTIONS (name 'N'), text text) SERVER elsewhere OPTIONS (file 'x');
GRANT USAGE ON FOREIGN SERVER elsewhere TO reader;
CREATE FUNCTION to_address(text) RETURNS address LANGUAGE sql IMMUTABLE AS $$ SELECT ROW($1, 0)::app.address $$;
CREATE CAST (text AS address) WITH FUNCTION to_address(text) AS ASSIGNMENT;
CREATE DEFAULT CONVERSION odd_latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TYPE base;
CREATE FUNCTION base_in(cstring) RETURNS base LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION base_out(base) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE base (INPUT = base_in, OUTPUT = base_out, LIKE = text);
CREATE TABLE bases (is_one base);
INSERT INTO bases VALUES ('one'), ('t''wo');
CREATE FUNCTION backwards(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT btint4cmp($2, $1) $$;
CREATE OPERATOR FAMILY turned USING btree;
CREATE OPERATOR CLASS turned_ops FOR TYPE int USING btree FAMILY turned AS
    OPERATOR 1 > (int, int), OPERATOR 2 >= (int, int), OPERATOR 3 = (int, int), OPERATOR 4 <= (int, int), OPERATOR 5 < (int, int),
    FUNCTION 1 backwards(int, int);
CREATE INDEX wide_turned ON wide (n turned_ops);
CREATE TEXT SEARCH TEMPLATE plain_words (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY few_words (TEMPLATE = plain_words);
CREATE TEXT SEARCH PARSER own_parser (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype);
ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING FOR asciiword WITH few_words;
CREATE FUNCTION own_handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE LANGUAGE own HANDLER own_handler;
CREATE FUNCTION by_own() RETURNS int LANGUAGE own AS $$ BEGIN RETURN 4; END $$;
CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal), TO SQL WITH FUNCTION int4recv(internal));
CREATE ACCESS METHOD pile TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE piled (n int) USING pile;
INSERT INTO piled SELECT generate_series(1, 5);
CREATE FUNCTION ranked() RETURNS bigint LANGUAGE internal WINDOW IMMUTABLE AS 'window_rank';
CREATE AGGREGATE nth(float8 ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE SUBSCRIPTION from_afar CONNECTION 'host=nowhere dbname=x' PUBLICATION changes WITH (connect = false, slot_name = NONE);
ALTER TABLE wide ALTER COLUMN filler SET STORAGE EXTERNAL;
ALTER TABLE wide SET (fillfactor = 80, autovacuum_enabled = off);
ALTER TABLE people CLUSTER ON people_pkey;
ALTER TABLE visits REPLICA IDENTITY FULL;
COMMENT ON SERVER elsewhere IS 'nobody is there';
