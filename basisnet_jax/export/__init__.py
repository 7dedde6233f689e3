"""Files for phones and servers, each checked in its own runtime."""
