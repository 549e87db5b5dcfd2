package albatross

import "context"

// Policies returns the policies of a path and below, by their full names.
func (c *Client) Policies(ctx context.Context, path Path) ([]NamedPolicy, error) {
	reply, err := c.ask(ctx, "list policies of", path.Name(), PolicyInfo{})
	if err != nil {
		return nil, err
	}
	m, ok := reply.(Policies)
	if !ok {
		return nil, unexpected("list policies of", path.Name(), reply)
	}
	for i := range m {
		m[i].Name = path.Join(m[i].Name)
	}
	return m, nil
}

// AddPolicy sets the policy of a path. It is [ErrPolicy] if the one above allows less, or one below or what runs uses more.
func (c *Client) AddPolicy(ctx context.Context, path Path, p Policy) error {
	_, err := c.ask(ctx, "add policy of", path.Name(), PolicyAdd{Policy: p})
	return err
}

// RemovePolicy removes the policy of a path. It is [ErrNotFound] if there is none.
func (c *Client) RemovePolicy(ctx context.Context, path Path) error {
	_, err := c.ask(ctx, "remove policy of", path.Name(), PolicyRemove{})
	return err
}
