"""Root's side of the children: has them forked, talks with them, watches and ends them."""
