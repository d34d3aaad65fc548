// Streams for browsers, with the WebSocket that browsers have: it sends no headers, so a ticket opens it.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

const API = process.env.E2B_API_URL
const KEYED = { 'x-api-key': process.env.E2B_API_KEY, 'content-type': 'application/json' }
const SECONDS = 1000
let box

const create = async () => {
  const answer = await fetch(`${API}/sandboxes`, {
    method: 'POST', headers: KEYED, body: JSON.stringify({ templateID: 'base', timeout: 120 }),
  })
  assert.equal(answer.status, 201)
  return (await answer.json()).sandboxID
}
const kill = (id) => fetch(`${API}/sandboxes/${id}`, { method: 'DELETE', headers: KEYED })
const ticketAnswer = (kind, id = box, headers = {}) =>
  fetch(`${API}/sandboxes/${id}/tickets`, {
    method: 'POST', headers: { ...KEYED, ...headers }, body: JSON.stringify({ kind }),
  })
const ticket = async (kind, id = box) => (await (await ticketAnswer(kind, id)).json()).ticket
const base64 = (text) => Buffer.from(text).toString('base64')
const text = (message) => Buffer.from(message.data, 'base64').toString()

// A WebSocket whose messages wait in order; its end is a message too.
function connect(path) {
  const socket = new WebSocket(API.replace('http', 'ws') + path)
  const waiting = []
  let wake = () => {}
  const put = (message) => { waiting.push(message); wake() }
  const opened = new Promise((resolve) => { socket.onopen = () => { put.opened = true; resolve() } })
  socket.onmessage = (event) => put(JSON.parse(event.data))
  socket.onerror = () => put.opened || put({ type: 'refused' })
  socket.onclose = (event) => put({ type: put.opened ? 'close' : 'refused', code: event.code, reason: event.reason })
  const next = async () => {
    if (!waiting.length) {
      await new Promise((resolve, reject) => {
        const late = setTimeout(() => reject(new Error('no message in time')), 20 * SECONDS)
        wake = () => { clearTimeout(late); resolve() }
      })
      wake = () => {}
    }
    return waiting.shift()
  }
  const until = async (type) => {
    for (;;) {
      const message = await next()
      if (message.type === type) return message
      assert.ok(!['close', 'refused'].includes(message.type), `${type} did not come: ${JSON.stringify(message)}`)
    }
  }
  return { opened, next, until, say: (message) => socket.send(JSON.stringify(message)), close: () => socket.close() }
}

async function start(process, id = box) {
  const socket = connect(`/sandboxes/${id}/processes?ticket=${await ticket('processes', id)}`)
  await socket.opened
  socket.say({ type: 'start', ...process })
  return [socket, await socket.until('attached')]
}

const again = async (attached, query) =>
  connect(`/sandboxes/${box}/processes?ticket=${await ticket('processes')}&pid=${attached.pid}&stream=${attached.stream}${query}`)

before(async () => { box = await create() })
after(() => kill(box))

test('a process takes input and tells its exit code', { timeout: 60 * SECONDS }, async () => {
  const [socket] = await start({ cmd: 'sh', args: ['-c', 'read line; echo "got $line"; echo no >&2; exit 7'], stdin: true })
  socket.say({ type: 'input', data: base64('one\n') })
  assert.equal(text(await socket.until('stdout')), 'got one\n')
  const end = await socket.until('exit')
  assert.equal(end.exitCode, 7)
  assert.equal(end.exited, true)
  assert.equal((await socket.until('close')).code, 1000)
})

test('a signal ends a process', { timeout: 60 * SECONDS }, async () => {
  const [socket] = await start({ cmd: 'sleep', args: ['60'] })
  socket.say({ type: 'signal', signal: 'SIGKILL' })
  const end = await socket.until('exit')
  assert.equal(end.exited, false)
  assert.match(end.status, /killed/)
})

test('a signal passes input that the process does not take', { timeout: 60 * SECONDS }, async () => {
  const [socket] = await start({ cmd: 'sleep', args: ['60'], stdin: true })
  for (let round = 0; round < 3; round++) socket.say({ type: 'input', data: base64('x'.repeat(80_000)) })
  socket.say({ type: 'signal', signal: 'SIGKILL' })
  assert.match((await socket.until('exit')).status, /killed/)
})

test('a bad message is answered and changes nothing', { timeout: 60 * SECONDS }, async () => {
  const [socket] = await start({ cmd: 'cat', stdin: true })
  for (const bad of [{ type: 'dance' }, { type: 'signal', signal: 'SIGHUP' }, { type: 'input', data: '%' }]) {
    socket.say(bad)
    assert.equal((await socket.until('error')).code, 'invalid_argument')
  }
  socket.say({ type: 'input', data: base64('still here') })
  assert.equal(text(await socket.until('stdout')), 'still here')
  socket.say({ type: 'closeInput' })
  assert.equal((await socket.until('exit')).exitCode, 0)
})

test('a process outlives its connection, which is resumed by number over either transport', { timeout: 60 * SECONDS }, async () => {
  const [first, attached] = await start({ cmd: 'cat', stdin: true })
  first.say({ type: 'input', data: base64('one') })
  const one = await first.until('stdout')
  first.close()
  const second = await again(attached, '&after=0')
  assert.deepEqual(await second.until('stdout'), one)
  const third = await again(attached, `&after=${one.seq}`)
  await third.until('attached')
  const events = await fetch(`${API}/sandboxes/${box}/processes?pid=${attached.pid}`, {
    headers: { ...KEYED, 'last-event-id': `${attached.stream}:0` },
  })
  assert.match(events.headers.get('content-type'), /^text\/event-stream/)
  second.say({ type: 'input', data: base64('two') })
  const two = await third.next()
  assert.equal(text(two), 'two')
  assert.equal(two.seq, one.seq + 1)
  second.say({ type: 'closeInput' })
  const body = await events.text()
  assert.deepEqual(
    [...body.matchAll(/^data: ?(.*)$/gm)].map(([, data]) => JSON.parse(data).type),
    ['attached', 'stdout', 'stdout', 'exit', 'closed'],
  )
  assert.ok(body.includes(`id: ${attached.stream}:${two.seq}`), body)
})

test('who comes back too late is told what is lost', { timeout: 60 * SECONDS }, async () => {
  const [first, attached] = await start({ cmd: 'sh', args: ['-c', 'read go; head -c 1000000 /dev/zero; echo done >&2; read go'], stdin: true })
  first.say({ type: 'input', data: base64('\n') })
  await first.until('stderr')
  const second = await again(attached, '&after=0')
  const lost = await second.until('lost')
  assert.equal(lost.from, 1)
  assert.equal((await second.next()).seq, lost.to + 1)
  second.say({ type: 'signal', signal: 'SIGKILL' })
  await second.until('exit')
})

test('a terminal has the size that it is given', { timeout: 60 * SECONDS }, async () => {
  const socket = connect(`/sandboxes/${box}/terminal?ticket=${await ticket('terminal')}&cols=91&rows=33`)
  await socket.until('attached')
  socket.say({ type: 'resize', cols: 101, rows: 44 })
  socket.say({ type: 'input', data: base64('stty size; exit 3\n') })
  let screen = ''
  let message
  do {
    message = await socket.next()
    if (message.type === 'pty') screen += text(message)
  } while (message.type === 'pty')
  assert.match(screen, /44 101/)
  assert.equal(message.exitCode, 3)
})

test('a watched directory tells its changes, and its end with the sandbox', { timeout: 60 * SECONDS }, async () => {
  const other = await create()
  try {
    const files = connect(`/sandboxes/${other}/files/watch?ticket=${await ticket('files', other)}&path=/home/user`)
    await files.until('attached')
    const [touch] = await start({ cmd: 'touch', args: ['/home/user/seen'] }, other)
    await touch.until('exit')
    const change = await files.until('file')
    assert.deepEqual([change.event, change.name], ['create', 'seen'])
    await kill(other)
    await files.until('error')
    assert.deepEqual(await files.until('close'), { type: 'close', code: 4000, reason: 'the sandbox has ended' })
  } finally {
    await kill(other)
  }
  assert.equal((await ticketAnswer('files', other)).status, 404)
})

test('a ticket opens one connection of its kind to its sandbox', { timeout: 60 * SECONDS }, async () => {
  const other = await create()
  try {
    const secret = await ticket('processes')
    const good = connect(`/sandboxes/${box}/processes?ticket=${secret}`)
    await good.opened
    good.close()
    const wrong = [
      [`/sandboxes/${box}/processes`, secret],
      [`/sandboxes/${box}/processes`, await ticket('files')],
      [`/sandboxes/${box}/processes`, await ticket('processes', other)],
      [`/sandboxes/${box}/processes`, 'made-up'],
    ]
    for (const [path, bad] of wrong) {
      assert.equal((await connect(`${path}?ticket=${bad}`).next()).type, 'refused', path)
      assert.equal((await fetch(`${API}${path}?pid=1&ticket=${bad}`)).status, 401, path)
    }
  } finally {
    await kill(other)
  }
})

test('pages of other origins get no ticket', { timeout: 60 * SECONDS }, async () => {
  assert.equal((await ticketAnswer('files', box, { origin: 'http://evil.example' })).status, 403)
  assert.equal((await ticketAnswer('files', box, { origin: API })).status, 201)
  const { status } = await fetch(`${API}/sandboxes/${box}/processes?pid=1&ticket=${await ticket('processes')}`, {
    headers: { origin: 'http://evil.example' },
  })
  assert.equal(status, 403)
})
