-- +goose Up

-- Who is signed in to the console. "digest" is SHA-256 of what the browser holds; times and "idle" are
-- microseconds.
CREATE TABLE console_sessions (
    tenant    TEXT    NOT NULL,
    digest    BYTEA   NOT NULL,
    principal TEXT    NOT NULL,
    issuer    TEXT    NOT NULL,
    signed_in BIGINT  NOT NULL,
    seen      BIGINT  NOT NULL,
    idle      BIGINT  NOT NULL,
    until     BIGINT  NOT NULL,
    PRIMARY KEY (tenant, digest)
);
CREATE INDEX console_sessions_until ON console_sessions (tenant, until);
