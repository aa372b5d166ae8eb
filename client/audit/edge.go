package audit

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Edge is the right edge of a log's tree: the hashes of the full subtrees that its size is made of, the
// largest and oldest first. It is all that one needs to append and to know the root.
type Edge struct {
	Size   uint64
	Hashes []tlog.Hash
}

// Check reports an error unless there are as many hashes as the size demands.
func (e *Edge) Check() error {
	if len(e.Hashes) != bits.OnesCount64(e.Size) {
		return fmt.Errorf("the edge of a tree of %d entries has %d hashes, not %d", e.Size, len(e.Hashes), bits.OnesCount64(e.Size))
	}
	return nil
}

// Node is the root of a full subtree of the log: that of 2^Level leaves, the first of which is leaf
// N·2^Level.
type Node struct {
	Level int
	N     uint64
	Hash  tlog.Hash
}

// Add appends a leaf. Each full subtree that it completes, the leaf itself left out, is given to done,
// unless that is nil.
func (e *Edge) Add(leaf tlog.Hash, done func(Node)) {
	node := Node{N: e.Size, Hash: leaf}
	for node.N&1 == 1 {
		last := len(e.Hashes) - 1
		node = Node{Level: node.Level + 1, N: node.N >> 1, Hash: tlog.NodeHash(e.Hashes[last], node.Hash)}
		e.Hashes = e.Hashes[:last]
		if done != nil {
			done(node)
		}
	}
	e.Hashes = append(e.Hashes, node.Hash)
	e.Size++
}

// Root is the tree's root hash (RFC 6962 §2.1).
func (e *Edge) Root() tlog.Hash {
	if len(e.Hashes) == 0 {
		return sha256.Sum256(nil)
	}
	root := e.Hashes[len(e.Hashes)-1]
	for i := len(e.Hashes) - 2; i >= 0; i-- {
		root = tlog.NodeHash(e.Hashes[i], root)
	}
	return root
}
