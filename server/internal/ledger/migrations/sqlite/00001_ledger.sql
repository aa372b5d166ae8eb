-- +goose Up

-- One row per tenant: who holds it appends. "revocation" is the number of the newest revocation.
CREATE TABLE heads (
    tenant     TEXT    NOT NULL PRIMARY KEY,
    seq        INTEGER NOT NULL,
    time       INTEGER NOT NULL,
    revocation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Times are microseconds since 1970; 0 stands for none. The columns behind "until" are personal and
-- may be set to '' together with their salt; nothing else ever changes.
CREATE TABLE entries (
    tenant           TEXT    NOT NULL,
    seq              INTEGER NOT NULL,
    kind             TEXT    NOT NULL,
    time             INTEGER NOT NULL,
    jti              TEXT    NOT NULL,
    parent           TEXT    NOT NULL,
    txn              TEXT    NOT NULL,
    root             TEXT    NOT NULL,
    holder_key       TEXT    NOT NULL,
    outcome          TEXT    NOT NULL,
    reason           TEXT    NOT NULL,
    scopes           TEXT    NOT NULL, -- separated by single spaces
    audiences        TEXT    NOT NULL, -- JSON array
    expiry           INTEGER NOT NULL,
    model_id         TEXT    NOT NULL,
    trace_id         TEXT    NOT NULL,
    voids            INTEGER NOT NULL,
    prev             INTEGER NOT NULL, -- of a revocation: the number of the tenant's revocation before it
    target_kind      TEXT    NOT NULL,
    target_id        TEXT    NOT NULL,
    until            INTEGER NOT NULL,
    subject          TEXT    NOT NULL,
    actor            TEXT    NOT NULL,
    caller           TEXT    NOT NULL,
    actors           TEXT    NOT NULL, -- oldest first, separated by |
    peer             TEXT    NOT NULL,
    detail           TEXT    NOT NULL,
    details          TEXT    NOT NULL, -- authorization_details, a JSON array
    actor_proof      TEXT    NOT NULL,
    target_principal TEXT    NOT NULL,
    target_subject   TEXT    NOT NULL,
    digests          BLOB    NOT NULL,
    salts            BLOB    NOT NULL,
    leaf             BLOB    NOT NULL,
    PRIMARY KEY (tenant, seq)
) STRICT;

-- Each further index costs every append: there are as few as the questions allow.
CREATE UNIQUE INDEX entries_jti ON entries (tenant, jti) WHERE jti <> '';
CREATE INDEX entries_txn ON entries (tenant, txn) WHERE txn <> '';
CREATE INDEX entries_revocations ON entries (tenant, seq) WHERE kind = 'revocation';

-- The claims of live grants, to be signed again for a retry.
CREATE TABLE claims (
    tenant TEXT    NOT NULL,
    seq    INTEGER NOT NULL,
    until  INTEGER NOT NULL,
    value  BLOB    NOT NULL,
    PRIMARY KEY (tenant, seq)
) STRICT, WITHOUT ROWID;

-- "digest" is SHA-256 over the length-prefixed parts of the name; "batch" tells one transaction's
-- rows from another's.
CREATE TABLE single_uses (
    tenant TEXT    NOT NULL,
    digest BLOB    NOT NULL,
    until  INTEGER NOT NULL,
    batch  BLOB    NOT NULL,
    PRIMARY KEY (tenant, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX single_uses_until ON single_uses (until, tenant);

CREATE TABLE idempotency_keys (
    tenant      TEXT    NOT NULL,
    digest      BLOB    NOT NULL,
    fingerprint BLOB    NOT NULL,
    seq         INTEGER NOT NULL,
    until       INTEGER NOT NULL,
    PRIMARY KEY (tenant, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_until ON idempotency_keys (until, tenant);
