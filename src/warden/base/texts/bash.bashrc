# For every interactive bash that is no login shell.
[ -z "$PS1" ] || PS1='\u@\h:\w\$ '
