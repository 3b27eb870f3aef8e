# Completion of vuserctl's command line in bash.
# bash takes ':' for the end of a word, so what stands before the last one is cut from candidates.
_vuserctl() {
    local line=${COMP_LINE:0:COMP_POINT} words current prefix candidate
    # Without -r, read takes the backslashes away; and the x keeps a space at the end, or one behind a
    # backslash, apart from the words before it.
    read -a words <<<"${line}x"
    words[${#words[@]} - 1]=${words[${#words[@]} - 1]%x}
    current=${words[${#words[@]} - 1]}
    prefix=
    [[ $COMP_WORDBREAKS == *:* && $current == *:* ]] && prefix=${current%:*}:
    COMPREPLY=()
    while IFS= read -r candidate; do
        [[ $candidate ]] || continue
        [[ $candidate == *[:/] ]] && compopt -o nospace
        COMPREPLY+=("$(printf %q "${candidate#"$prefix"}")")
    done <<<"$(vuserctl __complete "${words[@]:1}" 2>/dev/null)"
    [[ ${#COMPREPLY[@]} -eq 0 ]] && compopt -o default
}
complete -F _vuserctl vuserctl
