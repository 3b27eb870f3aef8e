"""The contenders: vuserd, the front-end without a daemon, and the alternatives to both."""
