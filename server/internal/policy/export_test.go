package policy

// Without switches off protections of the memory, for tests that must then see stale answers.
func (c *Checker) Without(asking, own, position, overlap, grants bool) *Checker {
	c.memory.off = memoryProtections{asking, own, position, overlap, grants}
	return c
}

// Remembers is how many decisions are kept.
func (c *Checker) Remembers() int {
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	return c.memory.decisions.young.size + c.memory.decisions.old.size
}

// Grants is how many whole questions are kept.
func (c *Checker) Grants() int {
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	return len(c.memory.granted)
}
