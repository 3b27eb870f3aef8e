#compdef vuserctl
_vuserctl() {
    local -a candidates open closed
    candidates=("${(@f)$(vuserctl __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    open=(${(M)candidates:#*[:/]})
    closed=(${candidates:#*[:/]})
    (( $#open )) && compadd -S '' -- $open
    (( $#closed )) && compadd -- $closed
    (( $#open + $#closed )) || _files
}
if [ "$funcstack[1]" = "_vuserctl" ]; then _vuserctl "$@"; else compdef _vuserctl vuserctl; fi
