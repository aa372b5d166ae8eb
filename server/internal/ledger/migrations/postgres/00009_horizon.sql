-- +goose Up

-- pruned_through is the time, in microseconds, up to which rows that have ended may be gone: what ends by then is
-- refused. Programs of before pruned by clocks that were not ahead of the head's time, 30 s after the end.
-- longest is the latest expiry of any grant so far: no revocation of what was granted may end before it.
ALTER TABLE heads ADD COLUMN pruned_through BIGINT NOT NULL DEFAULT 0;
ALTER TABLE heads ADD COLUMN longest BIGINT NOT NULL DEFAULT 0;
UPDATE heads SET pruned_through = greatest(time - 30000000, 0),
    longest = coalesce((SELECT max(e.expiry) FROM entries e WHERE e.tenant = heads.tenant AND e.kind = 'grant'), 0);
