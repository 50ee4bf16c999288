"""From videos and official annotation files to shards; sibling tools to look at both."""
