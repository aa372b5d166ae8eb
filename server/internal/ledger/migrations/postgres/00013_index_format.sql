-- +goose Up

-- Entries are found by their key and their peer too: the search index is built again, block by block. Searches
-- read the entries themselves until then.
DELETE FROM search_heads;
