-- +goose Up

-- How far each tenant's oldest entries were forgotten. "personal" is the last entry whose personal fields
-- were erased for its age. "through" is the last entry that was dropped for its age; "time", "revocation"
-- and "tree" are what the head was at that number, so that what remains can be verified.
CREATE TABLE retention (
    tenant     TEXT    NOT NULL PRIMARY KEY,
    personal   BIGINT  NOT NULL,
    through    BIGINT  NOT NULL,
    time       BIGINT  NOT NULL,
    revocation BIGINT  NOT NULL,
    tree       BYTEA   NOT NULL
);

-- The leaf hashes of the entries that were dropped, 256 in a row: every proof needs them.
CREATE TABLE dropped_leaves (
    tenant TEXT    NOT NULL,
    block  BIGINT  NOT NULL,
    leaves BYTEA   NOT NULL,
    PRIMARY KEY (tenant, block)
);
