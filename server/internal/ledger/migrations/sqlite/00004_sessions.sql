-- +goose Up

-- Who is signed in to the console. "digest" is SHA-256 of what the browser holds; times and "idle" are
-- microseconds.
CREATE TABLE console_sessions (
    tenant    TEXT    NOT NULL,
    digest    BLOB    NOT NULL,
    principal TEXT    NOT NULL,
    issuer    TEXT    NOT NULL,
    signed_in INTEGER NOT NULL,
    seen      INTEGER NOT NULL,
    idle      INTEGER NOT NULL,
    until     INTEGER NOT NULL,
    PRIMARY KEY (tenant, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX console_sessions_until ON console_sessions (tenant, until);
