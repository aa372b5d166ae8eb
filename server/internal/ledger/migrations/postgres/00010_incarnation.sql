-- +goose Up

-- The ledger's incarnation, in one row. "number" grows and "id" is drawn anew with each recovery and each failover
-- that was taken over. "recovered" is the number of the newest recovery. "system" and "timeline" are those of the
-- server that the ledger lives on; empty and 0: not known. "synchronous" is 1 if that server waited for a standby.
-- "beat" grows with each probe. "doubt" says why nobody may believe the ledger until it is recovered; empty: nothing.
CREATE TABLE incarnation (
    one         BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    number      BIGINT NOT NULL,
    id          TEXT   NOT NULL,
    recovered   BIGINT NOT NULL,
    system      TEXT   NOT NULL,
    timeline    BIGINT NOT NULL,
    synchronous BIGINT NOT NULL,
    beat        BIGINT NOT NULL,
    doubt       TEXT   NOT NULL
);
INSERT INTO incarnation (one, number, id, recovered, system, timeline, synchronous, beat, doubt)
VALUES (1, 0, '', 0, '', 0, 0, 0, '');

-- What each recovery found: the number of the tenant's newest entry before it, and the time in microseconds from
-- which on tokens are those of the incarnation that began with it.
CREATE TABLE recoveries (
    tenant TEXT   NOT NULL,
    number BIGINT NOT NULL,
    head   BIGINT NOT NULL,
    since  BIGINT NOT NULL,
    PRIMARY KEY (tenant, number)
);
