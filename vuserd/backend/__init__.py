"""The other end of the vhost-user socket: find, start, adopt and stop a virtiofsd."""
