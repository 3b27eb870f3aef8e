"""The other end of the vhost-user socket: find, start or adopt a virtiofsd."""
