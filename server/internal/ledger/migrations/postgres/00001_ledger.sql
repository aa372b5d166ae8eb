-- +goose Up

-- One row per tenant: who holds it appends. "revocation" is the number of the newest revocation.
CREATE TABLE heads (
    tenant     TEXT    NOT NULL PRIMARY KEY,
    seq        BIGINT  NOT NULL,
    time       BIGINT  NOT NULL,
    revocation BIGINT  NOT NULL
);

-- Times are microseconds since 1970; 0 stands for none. The columns behind "until" are personal and
-- may be set to '' together with their salt; nothing else ever changes.
CREATE TABLE entries (
    tenant           TEXT    NOT NULL,
    seq              BIGINT  NOT NULL,
    kind             TEXT    NOT NULL,
    time             BIGINT  NOT NULL,
    jti              TEXT    NOT NULL,
    parent           TEXT    NOT NULL,
    txn              TEXT    NOT NULL,
    root             TEXT    NOT NULL,
    holder_key       TEXT    NOT NULL,
    outcome          TEXT    NOT NULL,
    reason           TEXT    NOT NULL,
    scopes           TEXT    NOT NULL, -- separated by single spaces
    audiences        TEXT    NOT NULL, -- JSON array
    expiry           BIGINT  NOT NULL,
    model_id         TEXT    NOT NULL,
    trace_id         TEXT    NOT NULL,
    voids            BIGINT  NOT NULL,
    prev             BIGINT  NOT NULL, -- of a revocation: the number of the tenant's revocation before it
    target_kind      TEXT    NOT NULL,
    target_id        TEXT    NOT NULL,
    until            BIGINT  NOT NULL,
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
    digests          BYTEA   NOT NULL,
    salts            BYTEA   NOT NULL,
    leaf             BYTEA   NOT NULL,
    PRIMARY KEY (tenant, seq)
);

-- Each further index costs every append: there are as few as the questions allow.
CREATE UNIQUE INDEX entries_jti ON entries (tenant, jti) WHERE jti <> '';
CREATE INDEX entries_txn ON entries (tenant, txn) WHERE txn <> '';
CREATE INDEX entries_revocations ON entries (tenant, seq) WHERE kind = 'revocation';

-- The claims of live grants, to be signed again for a retry.
CREATE TABLE claims (
    tenant TEXT    NOT NULL,
    seq    BIGINT  NOT NULL,
    until  BIGINT  NOT NULL,
    value  BYTEA   NOT NULL,
    PRIMARY KEY (tenant, seq)
);

-- "digest" is SHA-256 over the length-prefixed parts of the name; "batch" tells one transaction's
-- rows from another's.
CREATE TABLE single_uses (
    tenant TEXT    NOT NULL,
    digest BYTEA   NOT NULL,
    until  BIGINT  NOT NULL,
    batch  BYTEA   NOT NULL,
    PRIMARY KEY (tenant, digest)
);
CREATE INDEX single_uses_until ON single_uses (until, tenant);

CREATE TABLE idempotency_keys (
    tenant      TEXT    NOT NULL,
    digest      BYTEA   NOT NULL,
    fingerprint BYTEA   NOT NULL,
    seq         BIGINT  NOT NULL,
    until       BIGINT  NOT NULL,
    PRIMARY KEY (tenant, digest)
);
CREATE INDEX idempotency_keys_until ON idempotency_keys (until, tenant);
