package policy

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
