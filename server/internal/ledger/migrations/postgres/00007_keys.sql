-- +goose Up

-- Private keys that Deputy manages, each sealed under a key that is not here. A number is given once, so of
-- several instances that find a successor due one makes it. Times and "lifetime" are microseconds; "retired"
-- is 0 until then, and "sealed" is empty afterwards.
CREATE TABLE managed_keys (
    tenant     TEXT   NOT NULL,
    purpose    TEXT   NOT NULL,
    number     BIGINT NOT NULL,
    kid        TEXT   NOT NULL,
    algorithm  TEXT   NOT NULL,
    published  BIGINT NOT NULL,
    signs_from BIGINT NOT NULL,
    lifetime   BIGINT NOT NULL,
    retired    BIGINT NOT NULL,
    sealed     BYTEA  NOT NULL,
    sealed_by  TEXT   NOT NULL,
    PRIMARY KEY (tenant, purpose, number)
);
