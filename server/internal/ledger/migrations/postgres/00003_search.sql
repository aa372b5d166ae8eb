-- +goose Up

-- How far each tenant's search index goes: blocks 0 to block-1 are built. Whoever changes what a built
-- block says adds to version. The index is derived from the entries: DELETE FROM search_heads has it
-- built again.
CREATE TABLE search_heads (
    tenant  TEXT    NOT NULL PRIMARY KEY,
    block   BIGINT  NOT NULL,
    version BIGINT  NOT NULL
);

-- One row for each bucket of each built block of 512 entries, also where it holds no term: a row that is
-- missing is a row that was lost.
CREATE TABLE postings (
    tenant TEXT    NOT NULL,
    bucket BIGINT  NOT NULL,
    block  BIGINT  NOT NULL,
    terms  BYTEA   NOT NULL,
    PRIMARY KEY (tenant, bucket, block)
);

-- Only voids are in it, so that it costs nothing to append anything else.
CREATE INDEX entries_voids ON entries (tenant, voids) WHERE voids <> 0;

-- A chain may have any number of entries: they are read a page at a time.
CREATE INDEX entries_chain ON entries (tenant, txn, seq) WHERE txn <> '';
DROP INDEX entries_txn;
