# Completion of vuserctl's command line in fish.
function __vuserctl_complete
    set -l words (commandline -opc) (commandline -ct)
    vuserctl __complete $words[2..-1] 2>/dev/null
end
complete -c vuserctl -f -a '(__vuserctl_complete)'
complete -c vuserctl -n '__fish_seen_subcommand_from get' -F
